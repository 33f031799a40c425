"""The command lines: one module a script, one a verb. Heavy imports stay inside the function that needs them."""

import gc

_was_collecting = gc.isenabled()
gc.disable()  # importing makes no garbage, and looking for it is an eighth of a command's start
import typer  # noqa: E402, F401  what every command line needs first

gc.freeze()
if _was_collecting:
    gc.enable()
