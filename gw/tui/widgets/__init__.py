"""One widget a module, its style inside it. Widgets draw the view model and hold no data of their own."""
