"""Our tunnel and wireguard-go, each in a namespace of its own.

ours (10.9.0.1, inner 100.64.9.1) ──veth── wireguard-go (10.9.0.2, inner 100.64.9.2)
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from gw.wire.x25519 import clamp, public_key
from tests.netns.namespaces import Namespaces

PORT = 51820
ADDRESSES = {"ours": "100.64.9.1", "go": "100.64.9.2"}


class End:
    """Our end, driven by lines."""

    def __init__(
        self, spaces: Namespaces, name: str, config: dict[str, object], folder: Path, *, cores: set[int] | None = None
    ) -> None:
        """cores: those it may use."""
        path = folder / f"{name}.json"
        path.write_text(json.dumps(config))
        self.log = (folder / f"{name}.log").open("w")
        self.process = subprocess.Popen(
            spaces.argv(name, sys.executable, str(Path(__file__).with_name("tunnelend.py")), str(path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )
        assert self.line()["ready"]

    def line(self) -> dict[str, object]:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        assert text, Path(self.log.name).read_text()
        return json.loads(text)

    def ask(self, text: str) -> dict[str, object]:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.line()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        assert self.process.returncode == 0, Path(self.log.name).read_text()


class Pair:
    """Both ends and the wire between them."""

    def __init__(self, spaces: Namespaces, folder: Path, **options: object) -> None:
        """options: cores that our end may use, and what `tunnelend.py` takes: lanes, offloads."""
        self.cores = options.pop("cores", None)
        self.options = options
        self.spaces = spaces
        self.folder = folder
        self.ours = clamp(os.urandom(32))
        self.theirs = clamp(os.urandom(32))
        self.end: End | None = None
        self.go: subprocess.Popen[bytes] | None = None

    def start(self, *, we_know: bool, they_know: bool, port: int = PORT) -> None:
        """Who knows the other's endpoint is who can initiate. port: where we look for them."""
        self.go = subprocess.Popen(
            self.spaces.argv("go", "wireguard-go", "-f", "wg0"),
            env={**os.environ, "LOG_LEVEL": "error", "WG_SUDO": "1"},
        )
        sock = Path("/var/run/wireguard/wg0.sock")
        for _ in range(100):
            if sock.exists():
                break
            time.sleep(0.05)
        key = self.folder / "go.key"
        key.write_text(base64.b64encode(self.theirs).decode())
        endpoint = ["endpoint", f"10.9.0.1:{PORT}"] if they_know else []
        ours = base64.b64encode(public_key(self.ours)).decode()
        self.spaces.run(
            "go", "wg", "set", "wg0", "listen-port", str(PORT), "private-key", str(key),
            "peer", ours, "allowed-ips", "100.64.9.1/32", *endpoint,
        )  # fmt: skip
        self.spaces.ip("go", "addr add 100.64.9.2/24 dev wg0")
        self.spaces.ip("go", "link set wg0 mtu 1280 up")
        self.end = End(
            self.spaces,
            "ours",
            {
                "secret": self.ours.hex(),
                "tun": "gw0",
                "port": PORT,
                "address": "100.64.9.1/24",
                **self.options,
                "peers": [
                    {
                        "key": public_key(self.theirs).hex(),
                        "allowed": ["100.64.9.2/32"],
                        "endpoint": f"10.9.0.2:{port}" if we_know else "",
                    }
                ],
            },
            self.folder,
            cores=self.cores,
        )

    def stop(self) -> None:
        if self.end is not None:
            self.end.close()
        if self.go is not None:
            self.go.terminate()
            self.go.wait(timeout=10)

    def ping(self, space: str, count: int = 3) -> None:
        address = "100.64.9.2" if space == "ours" else "100.64.9.1"
        out = self.spaces.run(space, "ping", "-n", "-c", str(count), "-i", "0.2", "-W", "5", address)
        assert " 0% packet loss" in out

    def listen(self, space: str) -> subprocess.Popen[bytes]:
        """An iperf3 server on the inner address of an end."""
        server = subprocess.Popen(
            self.spaces.argv(space, "iperf3", "-s", "-B", ADDRESSES[space]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(100):
            if f"{ADDRESSES[space]}:5201" in self.spaces.run(space, "ss", "-ltn"):
                break
            time.sleep(0.05)
        return server
