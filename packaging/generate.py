"""Write completions/ and man/ from the command lines themselves. `generate.py --check DIR` compares instead of writing.

docs/openapi.json
completions/bash/<script>  completions/zsh/_<script>  completions/fish/<script>.fish  man/<script>.1
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import typer
from typer.completion import get_completion_script

SCRIPTS: Final = ("gw", "gwd", "gwctl", "gwrelay", "gwdns")
SHELLS: Final = {"bash": "completions/bash/{}", "zsh": "completions/zsh/_{}", "fish": "completions/fish/{}.fish"}
EXIT_CODES: Final = (
    ("0", "done"), ("1", "failed"), ("2", "wrong usage"), ("3", "the daemon or server is not running"),
    ("4", "not found"), ("5", "no permission"), ("6", "not logged in, or key refused"), ("7", "no answer in time"),
    ("8", "conflict: it exists, or somebody else holds it"), ("9", "a file is wrong: file, line, key"),
    ("70", "a bug"), ("130", "interrupted"),
)  # fmt: skip


def application(script: str) -> typer.Typer:
    module = import_module(f"gw.commands.{script}")
    app = module.build() if hasattr(module, "build") else module.app
    assert isinstance(app, typer.Typer)
    return app


def roff(text: str) -> str:
    """Text as roff: backslashes and dashes kept literal, no line taken for a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in text.splitlines())


def sections(command: Any, context: Any, words: str) -> list[str]:
    """One part a command, depth first: usage, description, options."""
    out = []
    commands = getattr(command, "commands", {})
    if not commands:
        usage = " ".join(command.collect_usage_pieces(context))
        out += [".TP", f".B {roff(words)} {roff(usage)}".rstrip()]
        out += described(command.help or "")
        records = [parameter.get_help_record(context) for parameter in command.params]
        listed = [record for record in records if record and record[0] != "-h, --help"]
        if listed:
            out.append(".RS")
            for left, right in listed:
                out += [".TP", f".B {roff(left)}", roff(" ".join(right.split())) or "\\&"]
            out.append(".RE")
    for name, child in sorted(commands.items()):
        if not child.hidden:
            out += sections(child, context_of(child, name, context), f"{words} {name}")
    return out


def described(text: str) -> list[str]:
    """The help text as roff lines, a blank one between paragraphs."""
    parts = [roff(" ".join(part.split())) for part in re.split(r"\n\s*\n", text) if part.strip()]
    return [line for part in parts for line in (".sp", part)][1:] or ["\\&"]


def context_of(command: Any, name: str, parent: Any) -> Any:
    return command.context_class(command, info_name=name, parent=parent)


def man_page(script: str) -> str:
    command: Any = typer.main.get_command(application(script))
    context = context_of(command, script, None)
    options = [record for parameter in command.params if (record := parameter.get_help_record(context))]
    lines = [f'.TH {script.upper()} 1 "" "GhostWire" "GhostWire"', ".SH NAME", f"{script} \\- {roff(command.help)}"]
    lines += [".SH SYNOPSIS", f".B {script}", "[OPTIONS] COMMAND [ARGS]...", ".SH OPTIONS"]
    lines.append("These may stand before or after the command.")
    for left, right in options:
        lines += [".TP", f".B {roff(left)}", roff(" ".join(right.split())) or "\\&"]
    lines += [".SH COMMANDS", *sections(command, context, script)]
    lines += [".SH EXIT STATUS"]
    for code, meaning in EXIT_CODES:
        lines += [".TP", f".B {code}", roff(meaning)]
    lines += [".SH FILES", ".TP", ".I /var/lib/ghostwire", "The state directory, unless \\fB\\-\\-state\\-dir\\fR or"]
    lines += ["\\fBGW_STATE_DIR\\fR names another."]
    others = ", ".join(f"\\fB{other}\\fR(1)" for other in SCRIPTS if other != script)
    lines += [".SH SEE ALSO", others]
    return "\n".join(lines) + "\n"


def generated() -> dict[str, str]:
    """Path below the repository → content."""
    files = {f"man/{script}.1": man_page(script) for script in SCRIPTS}
    for script in SCRIPTS:
        variable = f"_{script.upper()}_COMPLETE"
        for shell, pattern in SHELLS.items():
            text = get_completion_script(prog_name=script, complete_var=variable, shell=shell)
            files[pattern.format(script)] = text + "\n"
    from gw.control.web import api_document

    files["docs/openapi.json"] = api_document().decode()
    return files


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    stale = []
    for name, text in generated().items():
        path = root / name
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if stale and "--check" in sys.argv:
        sys.exit(f"stale, run `make generated`: {', '.join(stale)}")


if __name__ == "__main__":
    main()
