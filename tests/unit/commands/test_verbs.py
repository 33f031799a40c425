"""Which verbs a command line loads, and that a person sees no difference."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from gw.commands import gw, gwctl, verbs

SCRIPTS = {"gw": (gw.HELP, gw.VERBS, None), "gwctl": (gwctl.HELP, gwctl.VERBS, gwctl.ALIASES)}


def application(script: str, *words: str) -> typer.Typer:
    help, known, aliases = SCRIPTS[script]
    return verbs.application(script, help, known, words, aliases)


def listed(app: typer.Typer) -> list[str]:
    return sorted(CliRunner().invoke(app, ["--help"]).output.splitlines())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_without_the_verbs_reads_like_help_with_them(script: str) -> None:
    whole = {"gw": gw.build, "gwctl": gwctl.build}[script]()
    assert listed(application(script, "--help")) == listed(whole)


def test_a_named_verb_is_loaded_alone() -> None:
    app = application("gwctl", "--json", "nodes", "list")
    assert ([each.name for each in app.registered_groups], app.registered_commands) == (["nodes"], [])


def test_an_alias_of_headscale_means_its_verb() -> None:
    app = application("gwctl", "machines", "list")
    assert [each.name for each in app.registered_groups] == ["nodes", "machines"]
    assert "approve-routes" in CliRunner().invoke(app, ["machines", "--help"]).output


@pytest.mark.parametrize(
    ("shell", "line", "found"),
    [
        ("complete_zsh", "gwctl no", ["nodes"]),
        ("complete_zsh", "gwctl nodes", ["nodes"]),
        ("complete_zsh", "gwctl nodes approve", ["approve", "approve-routes"]),
        ("complete_zsh", "gwctl --state-dir /x users cre", ["create"]),
    ],
)
def test_completing_words_knows_every_verb(
    shell: str, line: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_GWCTL_COMPLETE", shell)
    runner = CliRunner(env={"_TYPER_COMPLETE_ARGS": line, "_GWCTL_COMPLETE": shell})
    output = runner.invoke(application("gwctl"), [], prog_name="gwctl").output
    assert [word for word in found if f'"{word}"' in output] == found
    assert output.count('":"') == len(found)
