"""One TCP flow for some seconds, measured by the receiver: `python -m gw.lab.throughput serve|send …`."""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import Final

PORT: Final = 5201
BLOCK: Final = bytes(1 << 17)


def serve(address: str) -> None:
    """Take one flow and print {"bytes": n, "seconds": s}."""
    with socket.create_server(
        (address, PORT), family=socket.AF_INET6 if ":" in address else socket.AF_INET
    ) as listener:
        listener.settimeout(20)
        print("ready", flush=True)
        flow, _ = listener.accept()
    with flow:
        flow.settimeout(20)
        buffer = bytearray(1 << 20)
        total, began, last = 0, 0.0, 0.0
        while size := flow.recv_into(buffer):
            last = time.monotonic()
            began = began or last
            total += size
    print(json.dumps({"bytes": total, "seconds": last - began}), flush=True)


def send(address: str, seconds: float) -> None:
    with socket.create_connection((address, PORT), timeout=10) as flow:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            flow.sendall(BLOCK)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        send(sys.argv[2], float(sys.argv[3]))
