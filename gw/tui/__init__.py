"""`gw tui`: the mesh on one screen. The view model holds the data, widgets only draw it, the feed is the local API."""
