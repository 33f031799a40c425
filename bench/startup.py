"""What a command costs before it does anything: processor time beyond a bare interpreter of the same environment.

    rows: each of the commands a person types often, against `python -c "import argparse, json, socket"`, the least that
          a Python command line with JSON and a socket can import

Processor time and not the clock, the best of many: other programs on the machine disturb it least. Design: a read-only
command stays below 100 ms.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent / "out"
BIN = Path(sys.executable).parent
TURNS = 15
LIMIT_MS = 100.0
LEAST = "import argparse, json, socket"
COMMANDS = (
    "gw --version", "gw --help", "gw status", "gw ip", "gwctl --help", "gwctl version", "gwctl users list",
    "gwctl policy check --help", "gwd --help", "gwrelay --help", "gwdns --help",
)  # fmt: skip


def spent(command: list[str], environment: dict[str, str]) -> float:
    """Milliseconds of processor time of one run, the least of several."""
    best = float("inf")
    for _ in range(TURNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=False, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best * 1e3


def measure() -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="gw-bench-") as folder:
        environment = {**os.environ, "GW_STATE_DIR": folder}
        bare = spent([sys.executable, "-c", "pass"], environment)
        rival = spent([sys.executable, "-c", LEAST], environment) - bare
        for line in COMMANDS:
            script, *words = line.split()
            ours = spent([sys.executable, str(BIN / script), *words], environment) - bare
            rows.append({
                "name": line, "unit": "ms", "ours": ours, "rival": "argparse+json+socket", "rival_value": rival,
                "ratio": ours / rival if rival > 0 else None, "better": "lower",
            })  # fmt: skip
    return rows


def main() -> None:
    rows = measure()
    for row in rows:
        print(f"{row['name']:<28} {row['ours']:>7.1f} ms beyond the interpreter")
    OUT.mkdir(exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    report = {"machine": machine, "versions": f"CPython {platform.python_version()}", "rows": rows}
    (OUT / "startup.json").write_text(json.dumps(report, indent=1) + "\n")
    slow = [row["name"] for row in rows if row["ours"] > LIMIT_MS]
    if slow:  # a busy machine counts more processor time for the same work: the ratio is the result
        print(f"warning: more than {LIMIT_MS:.0f} ms: {', '.join(slow)}", file=sys.stderr)


if __name__ == "__main__":
    main()
