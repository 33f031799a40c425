"""Run every benchmark and print one table. `bench/run.py state relay` runs some of them.

Each is a program that writes `bench/out/NAME.json`: rows {name, unit, ours, rival, rival_value, ratio, better},
`ratio` being ours / rival. Absolute numbers drift with the machine: the ratio within one run is the result.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"


def rows_of(name: str) -> list[dict[str, Any]]:
    path = OUT / f"{name}.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    rows = content["rows"] if isinstance(content, dict) else content
    return [row for row in rows if isinstance(row, dict)]


def table(name: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{name}")
    for row in rows:
        line = f"  {row['name']:<46} {row['ours']:>12,.4g} {row['unit']:<8}"
        if row.get("rival_value"):
            verdict = "better" if (row["ratio"] > 1) == (row["better"] == "higher") else "worse"
            line += f" {row['rival']}: {row['rival_value']:,.4g}  ratio {row['ratio']:.2f} ({verdict})"
        print(line)


def plot(name: str, rows: list[dict[str, Any]]) -> None:
    """A figure's bar beside those of its rivals, each figure on its own scale."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = list(dict.fromkeys(f"{row['name']} ({row['unit']}, {row['better']} is better)" for row in rows))
    figure, axes = pyplot.subplots(len(titles), 1, figsize=(9, 0.3 * len(rows) + 0.6 * len(titles) + 1), squeeze=False)
    for axis, title in zip(axes[:, 0], titles, strict=True):
        mine = [row for row in rows if title.startswith(f"{row['name']} ({row['unit']}")]
        bars = [("GhostWire", mine[0]["ours"])]
        bars += [(row["rival"], row["rival_value"]) for row in mine if row.get("rival_value")]
        colours = ["#2a6f97", *["#bbbbbb"] * (len(bars) - 1)]
        axis.barh([label for label, _ in bars], [value for _, value in bars], color=colours)
        axis.set_title(title, fontsize=8, loc="left")
        axis.tick_params(labelsize=7)
        axis.invert_yaxis()
    figure.suptitle(f"{name} on {platform.machine()}, Linux {platform.release().split('-')[0]}", fontsize=9)
    figure.tight_layout()
    figure.savefig(OUT / f"{name}.png", dpi=120)
    pyplot.close(figure)


def main() -> int:
    known = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "run")
    chosen = sys.argv[1:] or known
    OUT.mkdir(exist_ok=True)
    failed = []
    for name in chosen:
        if name not in known:
            print(f"error: no benchmark `{name}`\nhint: one of {', '.join(known)}", file=sys.stderr)
            return 2
        if subprocess.run([sys.executable, "-P", str(HERE / f"{name}.py")], check=False).returncode != 0:
            failed.append(name)
    for name in chosen:
        rows = rows_of(name)
        if rows:
            table(name, rows)
            plot(name, rows)
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
