"""The global flags, error text and exit codes that all scripts share."""

from __future__ import annotations

import json
import logging

import pytest

from gw import logs
from gw.commands import shell
from gw.errors import ConfigError, GwError, NotRunning, UsageError


def test_global_flags_stand_before_or_after_the_verb() -> None:
    for words in (["--state-dir", "/x", "status", "--json"], ["status", "--json", "--state-dir=/x"]):
        found, version, rest = shell.hoist(words)
        assert (found.state_dir, found.json, version, rest) == ("/x", True, False, ["status"])


def test_words_after_a_double_dash_belong_to_the_inner_command() -> None:
    found, _, rest = shell.hoist(["lab", "exec", "bob", "--", "gw", "status", "--json"])
    assert not found.json
    assert rest == ["lab", "exec", "bob", "--", "gw", "status", "--json"]


def test_version_is_global_only_before_the_verb() -> None:
    assert shell.hoist(["--version"])[1]
    assert shell.hoist(["x", "--version"])[2] == ["x", "--version"]


@pytest.mark.parametrize("words", [["--state-dir"], ["--log-level", "loud"], ["--log-format=xml"]])
def test_a_bad_global_flag_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(UsageError):
        shell.hoist(words)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (NotRunning("no daemon", hint="gwd run"), 3, "error: no daemon\nhint: gwd run\n"),
        (
            ConfigError("unknown key", path="config.toml", line=3, key="x"),
            9,
            "error: config.toml:3: `x`: unknown key\n",
        ),
        (GwError("failed"), 1, "error: failed\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_is_one_line_a_hint_and_an_exit_code(
    error: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        shell.fail(error)
    assert left.value.code == status
    assert capsys.readouterr().err == text


def test_an_unexpected_exception_is_a_bug_with_a_way_to_report(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        shell.fail(ZeroDivisionError("x"))
    assert left.value.code == 70
    assert "GW_DEBUG=1" in capsys.readouterr().err


def test_the_first_error_of_a_group_is_the_one_for_people() -> None:
    wanted = NotRunning("x")
    group = BaseExceptionGroup("g", [ValueError("y"), BaseExceptionGroup("h", [wanted])])
    assert shell.first_error(group) is wanted


def test_json_log_lines_carry_extra_fields() -> None:
    record = logging.LogRecord("gw.node", logging.INFO, "f", 1, "hello %s", ("x",), None)
    record.peer = "[abcde]"
    line = json.loads(logs.JsonFormatter().format(record))
    assert (line["message"], line["level"], line["peer"]) == ("hello x", "info", "[abcde]")
