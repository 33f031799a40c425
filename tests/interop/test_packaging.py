"""The package as a stranger gets it: built once, installed where no compiler is, upgraded, removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = ("gw", "gwd", "gwctl", "gwrelay", "gwdns")
pytestmark = [pytest.mark.timeout(600)]


def run(*words: object, **environment: str) -> str:
    """Run a command from a neutral directory; returns stdout, fails the test with both outputs."""
    result = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, **environment},
        timeout=550,
    )
    assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def build(target: Path, source: Path = REPOSITORY, **environment: str) -> Path:
    """A wheel of the checkout, by the build requirements of this environment; nothing of an earlier build is used."""
    shutil.rmtree(source / "build", ignore_errors=True)
    run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", target, source,
        **environment,
    )  # fmt: skip
    (wheel,) = target.glob("*.whl")
    return wheel


def environment_without_compiler(path: Path) -> Path:
    """A virtual environment that sees this one's dependencies, pip too, but not its GhostWire; returns its python."""
    run(sys.executable, "-m", "venv", "--without-pip", path)
    python = path / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed and uncommitted sources without build leftovers, so that a build cannot reuse any."""
    target = tmp_path_factory.mktemp("source")
    files = run("git", "-C", REPOSITORY, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in files:
        source = REPOSITORY / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(source.read_bytes())
    return target


@pytest.fixture(scope="module")
def small(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one module that is compiled, which stands for all: how a build ends, not what it takes."""
    target = tmp_path_factory.mktemp("small") / "source"
    shutil.copytree(copy, target)
    setup = (target / "setup.py").read_text()
    assert setup.count("\nMODE = ") == setup.count("\n\n\nclass AllOrNothing") == 1
    few = '\n\nSOURCES = ["gw/native/replay.py"]\n\n\nclass AllOrNothing'
    (target / "setup.py").write_text(setup.replace("\n\n\nclass AllOrNothing", few))
    return target


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """With a compiled core: the one that `make install` has built and installed here, or one from a copy."""
    for built in Path(sys.prefix).glob("wheel/*.whl"):
        if any(name.endswith(".so") for name in zipfile.ZipFile(built).namelist()):
            return built
    return build(tmp_path_factory.mktemp("wheel"), request.getfixturevalue("copy"), GW_NATIVE="require")


def test_a_wheel_installs_without_a_compiler_and_its_core_is_compiled(wheel: Path, tmp_path: Path) -> None:
    python = environment_without_compiler(tmp_path / "venv")
    run(
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
        wheel,
        PATH=str(tmp_path / "venv/bin"),
    )
    told = run(python, "-P", "-c", "import gw, gw.native; print(gw.native.COMPILED, gw.__file__)")
    assert told.startswith(f"True {tmp_path}"), told
    for script in SCRIPTS:
        assert "compiled core" in run(tmp_path / "venv/bin" / script, "--version")


def test_the_wheel_carries_units_man_pages_and_completions(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for script in SCRIPTS:
        for end in (f"man/man1/{script}.1", f"completions/{script}", f"site-functions/_{script}"):
            assert any(name.endswith(end) for name in names), end
    for unit in ("gwctl", "gwrelay", "gwdns", "gwd"):
        assert any(name.endswith(f"systemd/{unit}.service") for name in names), unit
    assert any(name.endswith("gw/py.typed") for name in names)
    assert not any("tests/" in name for name in names)


def test_reinstalling_upgrades_in_place_and_removing_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    python = environment_without_compiler(tmp_path / "venv")
    for _ in range(2):
        run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    assert (site / "gw").is_dir()
    run(python, "-m", "pip", "uninstall", "-q", "-y", "ghostwire-mesh")
    left = [
        path
        for path in (tmp_path / "venv").rglob("*")
        if path.is_file() and ("ghostwire" in str(path.relative_to(tmp_path)) or path.name in SCRIPTS)
    ]
    assert left == []


def test_a_compiler_that_fails_half_way_leaves_a_package_that_runs(small: Path, tmp_path: Path) -> None:
    """mypyc's group file can fail while its shims build: then no extension may stay."""
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nfor word; do case "$word" in *__native*) exit 1;; esac; done\nexec cc "$@"\n')
    compiler.chmod(0o755)
    (tmp_path / "out").mkdir()
    _runs_interpreted(build(tmp_path / "out", small, GW_NATIVE="auto", CC=str(compiler)), tmp_path)


def test_code_that_does_not_translate_leaves_a_package_that_runs(small: Path, tmp_path: Path) -> None:
    """Another release of a library may have other types than those that compiled modules were written for."""
    module = small / "gw/native/replay.py"
    right = module.read_text()
    module.write_text(right + "\nODD: int = 'a word'\n")
    try:
        wheel = build(tmp_path / "out", small, GW_NATIVE="auto")
    finally:
        module.write_text(right)
    _runs_interpreted(wheel, tmp_path)


def _runs_interpreted(wheel: Path, tmp_path: Path) -> None:
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    python = environment_without_compiler(tmp_path / "venv")
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed", wheel)
    assert run(python, "-P", "-c", "import gw.native; print(gw.native.COMPILED)").strip() == "False"
    assert "interpreted core" in run(tmp_path / "venv/bin/gwd", "--version")


def test_require_fails_where_the_core_does_not_compile(small: Path, tmp_path: Path) -> None:
    shutil.rmtree(small / "build", ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    result = subprocess.run(
        [*command, str(small)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "GW_NATIVE": "require", "CC": "/bin/false"},
        timeout=300,
    )
    assert result.returncode != 0
    assert not list(tmp_path.glob("*.whl"))


def test_man_pages_and_completions_are_those_of_the_command_line() -> None:
    run(sys.executable, "-P", REPOSITORY / "packaging" / "generate.py", "--check")


@pytest.mark.parametrize("tool", ["pipx", "uv"])
def test_an_application_installer_installs_upgrades_and_removes_it(wheel: Path, tmp_path: Path, tool: str) -> None:
    """As docs/install.md says, with the wheel in place of the name on the index."""
    program = Path(sys.executable).parent / tool
    if not program.exists():
        pytest.skip(f"needs {tool} (it is in the dev group)")
    here = {
        "PIPX_HOME": str(tmp_path / "home"),
        "PIPX_BIN_DIR": str(tmp_path / "bin"),
        "PIPX_MAN_DIR": str(tmp_path / "man"),
        "UV_TOOL_DIR": str(tmp_path / "home"),
        "UV_TOOL_BIN_DIR": str(tmp_path / "bin"),
        "UV_PYTHON": sys.executable,
    }
    verb = [program, "tool"] if tool == "uv" else [program]
    run(*verb, "install", wheel, **here)
    for script in SCRIPTS:
        assert "compiled core" in run(tmp_path / "bin" / script, "--version")
    run(*verb, "install", "--force", wheel, **here)
    assert "compiled core" in run(tmp_path / "bin" / "gw", "--version")
    run(*verb, "uninstall", "ghostwire-mesh", **here)
    assert not [path for path in (tmp_path / "bin").iterdir() if path.name in SCRIPTS]


def test_a_wheel_for_an_architecture_without_compiler_is_refused_in_one_line(copy: Path) -> None:
    words = ["sh", copy / "packaging" / "cross-wheel", "pdp_11"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "no pdp_11-linux-gnu-gcc" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.long
@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="needs what packaging/cross-wheel tells")
def test_a_wheel_for_arm_holds_a_core_compiled_for_arm(copy: Path) -> None:
    run("sh", copy / "packaging" / "cross-wheel", "aarch64", PYTHON=sys.executable)
    (wheel,) = (copy / "dist").glob("*-linux_aarch64.whl")
    with zipfile.ZipFile(wheel) as archive:
        libraries = [archive.read(name) for name in archive.namelist() if name.endswith(".so")]
    assert len(libraries) > 10
    assert all(library[:4] == b"\x7fELF" and library[18:20] == b"\xb7\x00" for library in libraries)  # EM_AARCH64
