"""Control servers as processes: their state, their keys, and what they cost.

Ours is started from the running interpreter's own package. Headscale is the binary that `$HEADSCALE` names, with an
SQLite database and its defaults.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

SERVE: Final = "from gw.commands.gwctl import main; main()"
START_LIMIT_S: Final = 120.0
RELAY: Final = """schema = 1
region_id = 900
code = "bench"
name = "Bench"

[[nodes]]
name = "900a"
host_name = "192.0.2.9"
ipv4 = "192.0.2.9"
ipv6 = "none"
stunport = -1
"""
HEADSCALE_CONFIG: Final = """
server_url: http://127.0.0.1:{port}
listen_addr: 127.0.0.1:{port}
metrics_listen_addr: 127.0.0.1:{metrics}
grpc_listen_addr: 127.0.0.1:{grpc}
grpc_allow_insecure: false
noise: {{private_key_path: {folder}/noise_private.key}}
prefixes: {{v4: 100.64.0.0/10, v6: "fd7a:115c:a1e0::/48", allocation: sequential}}
derp:
  server: {{enabled: false}}
  urls: []
  paths: [{folder}/derp.yaml]
  auto_update_enabled: false
disable_check_updates: true
database: {{type: sqlite, sqlite: {{path: {folder}/db.sqlite, write_ahead_log: true}}}}
log: {{level: error, format: text}}
policy: {{mode: file, path: ""}}
dns: {{magic_dns: true, base_domain: bench.test, override_local_dns: false, nameservers: {{global: []}}}}
unix_socket: {folder}/headscale.sock
unix_socket_permission: "0770"
logtail: {{enabled: false}}
"""
DERP_YAML: Final = """regions:
  900:
    regionid: 900
    regioncode: bench
    regionname: Bench
    nodes:
      - {name: 900a, regionid: 900, hostname: 192.0.2.9, ipv4: 192.0.2.9, ipv6: none, stunport: -1}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process with its children. Start it with `start`, end it with `stop` or `kill`."""

    name = ""
    is_tls = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.ended_cpu_s = 0.0

    def command(self) -> tuple[list[str], dict[str, str]]:
        raise NotImplementedError

    def start(self) -> float:
        """Seconds until it answers."""
        command, environment = self.command()
        begun = time.monotonic()
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
        while time.monotonic() < begun + START_LIMIT_S:
            if self._answers():
                return time.monotonic() - begun
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"{self.name} does not start: {(self.folder / 'server.log').read_text()[-2000:]}")

    def _answers(self) -> bool:
        """Whether it tells its key; waits for one that accepts and is not ready."""
        kind = http.client.HTTPSConnection if self.is_tls else http.client.HTTPConnection
        more = {"context": ssl._create_unverified_context()} if self.is_tls else {}
        client = kind("127.0.0.1", self.port, timeout=5, **more)
        try:
            client.request("GET", "/key?v=116")
            return client.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            client.close()

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def processes(self) -> list[int]:
        """Its process ids, children included."""
        assert self.process is not None
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    queue += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
            except OSError:
                continue
        return found

    def cpu_s(self) -> float:
        """User and system time of all processes that run now."""
        total = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Resident memory of all processes, a page shared by several counted once."""
        total = 0
        for pid in self.processes():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total


class GhostWire(Server):
    """`gwctl serve`. policy: HuJSON text; users: how many; shared: whether to make a key for tagged servers."""

    name = "GhostWire"

    def __init__(
        self, folder: Path, *, policy: str, users: int, shared: bool = False, tls: bool = False, workers: int = 0
    ) -> None:
        super().__init__(folder)
        self.policy, self.users, self.shared, self.workers = policy, users, shared, workers
        self.is_tls = tls
        self.keys: list[str] = []
        self.shared_key = ""

    def prepare(self) -> None:
        from gw.control.authkeys import compose
        from gw.state.documents import PreauthKeyDoc, UserDoc
        from gw.state.layout import init_state_dir
        from gw.state.paths import StatePaths
        from gw.state.store import DirectoryStore, Put

        paths = StatePaths(self.folder / "state")
        scheme = "https" if self.is_tls else "http"
        config = f'server_url = "{scheme}://127.0.0.1:{self.port}"\nlisten = "127.0.0.1:{self.port}"\n'
        config += 'domain = "bench.test"\n'
        if self.is_tls:
            certificate(self.folder)
            config += f'tls_cert_file = "{self.folder}/cert.pem"\ntls_key_file = "{self.folder}/key.pem"\n'
        init_state_dir(paths, config=config, policy=self.policy)
        (paths.relays_dir / "900.toml").write_text(RELAY)
        now = datetime.now(UTC)
        changes: list[Any] = []
        for number in range(1, self.users + 1):
            key, prefix, digest = compose(os.urandom(6), os.urandom(32))
            self.keys.append(key)
            changes.append(Put(UserDoc(id=number, name=f"user{number}", created=now)))
            changes.append(
                Put(
                    PreauthKeyDoc(
                        id=number, prefix=prefix, hash=digest, user=f"user{number}", reusable=True, created=now
                    )
                )
            )
        if self.shared:
            self.shared_key, prefix, digest = compose(os.urandom(6), os.urandom(32))
            number = self.users + 1
            changes.append(
                Put(
                    PreauthKeyDoc(
                        id=number, prefix=prefix, hash=digest, tags=["tag:shared"], reusable=True, created=now
                    )
                )
            )
        with DirectoryStore(paths).open() as store:
            asyncio.run(store.commit(changes))

    def command(self) -> tuple[list[str], dict[str, str]]:
        words = ["serve"]
        if self.workers:
            words += ["--workers", str(self.workers)]
        return [sys.executable, "-P", "-c", SERVE, *words], {"GW_STATE_DIR": str(self.folder / "state")}


class Headscale(Server):
    """The rival; nothing is allowed or forbidden by a policy: everyone sees everyone, its default."""

    name = "Headscale"

    def __init__(self, folder: Path, binary: str) -> None:
        super().__init__(folder)
        self.binary = binary
        self.keys: list[str] = []
        self.shared_key = ""

    def prepare(self) -> None:
        text = HEADSCALE_CONFIG.format(port=self.port, metrics=free_port(), grpc=free_port(), folder=self.folder)
        (self.folder / "config.yaml").write_text(text)
        (self.folder / "derp.yaml").write_text(DERP_YAML)
        self.start()
        time.sleep(1)
        user = json.loads(self._run("users", "create", "bench", "-o", "json"))
        key = json.loads(
            self._run("preauthkeys", "create", "-u", str(user["id"]), "--reusable", "-e", "24h", "-o", "json")
        )
        self.keys.append(str(key["key"]))
        self.stop()

    def _run(self, *words: str) -> str:
        command = [self.binary, "-c", str(self.folder / "config.yaml"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    def command(self) -> tuple[list[str], dict[str, str]]:
        return [self.binary, "-c", str(self.folder / "config.yaml"), "serve"], {}


def certificate(folder: Path) -> None:
    """A self-signed P-256 certificate for 127.0.0.1."""
    from datetime import timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench.test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    (folder / "key.pem").chmod(0o600)
