"""Certificate files: what is wrong is one clear line, what is doubtful a warning."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from gw.errors import ConfigError
from gw.net.certificates import covers, is_open_to_others, read


def files(folder: Path, *names: str, **more: datetime) -> tuple[str, str]:
    made = trustme.CA().issue_cert(*names, **more)
    cert, key = folder / "c.pem", folder / "k.pem"
    made.cert_chain_pems[0].write_to_path(str(cert))
    made.private_key_pem.write_to_path(str(key))
    return str(cert), str(key)


def test_a_good_pair_has_no_doubts(tmp_path: Path) -> None:
    found = read(*files(tmp_path, "mesh.test", "192.0.2.1"))
    assert found.names == ["mesh.test", "192.0.2.1"]
    assert found.doubts("mesh.test", datetime.now(UTC)) == found.doubts("192.0.2.1", datetime.now(UTC)) == []
    assert found.doubts("other.test", datetime.now(UTC)) == ["it is for mesh.test, 192.0.2.1, not for `other.test`"]


def test_key_and_chain_may_be_one_file(tmp_path: Path) -> None:
    cert, key = files(tmp_path, "mesh.test")
    both = tmp_path / "both.pem"
    both.write_bytes(Path(key).read_bytes() + Path(cert).read_bytes())
    assert read(str(both), str(both)).names == ["mesh.test"]


def test_the_end_is_seen_coming(tmp_path: Path) -> None:
    ends = datetime.now(UTC) + timedelta(days=30)
    found = read(*files(tmp_path, "mesh.test", not_after=ends))
    assert found.doubts("mesh.test", ends - timedelta(days=13))[0].startswith("it expires on")
    assert found.doubts("mesh.test", ends + timedelta(days=1))[0].startswith("it expired on")
    assert found.doubts("mesh.test", datetime(1990, 1, 1, tzinfo=UTC))[-1].startswith("it is valid from")


def test_a_key_with_a_password_is_refused(tmp_path: Path) -> None:
    cert, key = files(tmp_path, "mesh.test")
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    Path(key).write_bytes(locked)
    with pytest.raises(ConfigError, match="password"):
        read(cert, key)


def test_who_may_read_a_key(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.touch()
    path.chmod(0o640)
    assert not is_open_to_others(str(path))
    path.chmod(0o644)
    assert is_open_to_others(str(path))


@pytest.mark.parametrize(
    ("names", "hostname", "is_covered"),
    [
        (["mesh.test"], "MESH.test.", True),
        (["*.test"], "mesh.test", True),
        (["*.test"], "a.mesh.test", False),
        (["*.test"], "test", False),
        (["mesh.test"], "amesh.test", False),
        (["2001:db8::1"], "2001:0db8:0::1", True),
        ([], "mesh.test", False),
    ],
)
def test_which_names_a_certificate_is_for(names: list[str], hostname: str, is_covered: bool) -> None:
    assert covers(names, hostname) == is_covered
