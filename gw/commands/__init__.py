"""The command lines: one module a script, one a verb. Heavy imports stay inside the function that needs them."""
