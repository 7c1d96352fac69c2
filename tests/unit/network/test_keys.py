"""Keys and certificates, read back with cryptography and with TLS itself."""

import contextlib
import datetime
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.network.flower.processes import check_port, free_port
from mlecs_lightning.network.identity import certificates
from mlecs_lightning.network.identity.diagnosis import connection_fault, split_address
from mlecs_lightning.network.identity.keys import device_key, device_names, keys, server_files


def make(folder: Path, *words: str) -> int:
    return keys([*words, "--dir", str(folder)])


def accepted(folder: Path, authority: Path, host: str) -> bool:
    """Whether a TLS client that trusts an authority accepts the server of a folder."""
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(folder / "server.pem", folder / "server.key")
    trusting = ssl.create_default_context(cafile=str(authority))
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            served.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with trusting.wrap_socket(ours, server_hostname=host):
            return True
    except ssl.SSLError:
        return False
    finally:
        ours.close()
        thread.join()


def test_devices_accept_their_server_under_its_names_and_no_other(tmp_path: Path) -> None:
    for name in ("own", "other"):
        assert make(tmp_path / name, "server", "--host", "cloud.example.org") == 0
    own, other = tmp_path / "own", tmp_path / "other"
    for host in ("cloud.example.org", "localhost", "127.0.0.1"):
        assert accepted(own, own / "ca.pem", host)
    assert not accepted(own, own / "ca.pem", "elsewhere.example.org")
    assert not accepted(own, other / "ca.pem", "cloud.example.org")


def test_a_second_certificate_is_of_the_same_authority(tmp_path: Path) -> None:
    make(tmp_path, "server")
    authority = (tmp_path / "ca.pem").read_bytes()
    make(tmp_path, "server", "--host", "10.0.0.7")
    assert (tmp_path / "ca.pem").read_bytes() == authority
    assert accepted(tmp_path, tmp_path / "ca.pem", "10.0.0.7")
    names = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    names.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))


def test_a_device_keeps_its_key_to_itself(tmp_path: Path) -> None:
    assert make(tmp_path, "device", "kitchen") == 0
    private, public = tmp_path / "kitchen.key", tmp_path / "kitchen.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes()
    assert make(tmp_path, "device", "kitchen") == 0  # once more: nothing changes
    assert private.read_bytes() == before
    key = serialization.load_ssh_private_key(before, None)
    told = serialization.load_ssh_public_key(public.read_bytes())
    assert key.public_key() == told
    assert device_names(tmp_path) == ["kitchen"]


@pytest.mark.parametrize("gone", ["ca.pem", "ca.key"])
def test_half_an_authority_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    assert make(tmp_path, "server") == 0
    (tmp_path / gone).unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert make(tmp_path, "server") == 1
    there = "ca.key" if gone == "ca.pem" else "ca.pem"
    said = capsys.readouterr().err
    assert f"there is {tmp_path / there} but no {tmp_path / gone}" in said
    assert f"remove {tmp_path / there} to make a new authority" in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_half_a_key_pair_is_completed_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, "device", "kitchen")
    private, public = tmp_path / "kitchen.key", tmp_path / "kitchen.pub"
    pair = private.read_bytes(), public.read_bytes()
    public.unlink()
    assert make(tmp_path, "device", "kitchen") == 0
    assert (private.read_bytes(), public.read_bytes()) == pair
    private.unlink()
    assert make(tmp_path, "device", "kitchen") == 1
    assert f"there is {public} but no {private}" in capsys.readouterr().err
    assert public.read_bytes() == pair[1]
    public.unlink()
    private.write_text("no key")
    assert make(tmp_path, "device", "kitchen") == 1
    assert f"{public} is missing, and {private} is no private key" in capsys.readouterr().err


def test_what_is_missing_is_named_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match=r"no .*ca.pem.*mlecs keys server"):
        server_files(tmp_path)
    with pytest.raises(ConfigurationError, match=r"ca.pem; copy it from the server"):
        device_key(tmp_path, "hall")
    (tmp_path / "ca.pem").touch()
    with pytest.raises(ConfigurationError, match=r"hall.key; make it with `mlecs keys device hall"):
        device_key(tmp_path, "hall")
    assert make(tmp_path, "device", "../hall") == 1
    assert "is no name" in capsys.readouterr().err


@pytest.fixture
def served() -> Iterator[Callable[[Path], int]]:
    """Serve one connection after another with the certificate of a folder; return the port."""
    opened: list[socket.socket] = []

    def call(folder: Path, *, clock: float = 0.0) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        listening = socket.create_server(("", 0))
        opened.append(listening)

        def serve() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                with (
                    contextlib.suppress(OSError),
                    context.wrap_socket(plain, server_side=True) as c,
                ):
                    c.recv(4096)
                    date = formatdate(time.time() + clock, usegmt=True)
                    c.sendall(f"HTTP/1.1 404 no\r\nDate: {date}\r\n\r\n".encode())

        threading.Thread(target=serve, daemon=True).start()
        return int(listening.getsockname()[1])

    yield call
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    ("now", "clock", "host", "words"),
    [
        (0, 0, "127.0.0.1", ""),
        (0, 0, "127.0.0.2", "`mlecs keys server --host 127.0.0.2`"),
        (-6, 0, "127.0.0.1", "has expired: make a new one with `mlecs keys server`"),
        (1, 0, "127.0.0.1", "not valid yet: set the clock of this machine"),
        (0, 3600, "127.0.0.1", "s behind the server's: set it"),
        (0, -60, "127.0.0.1", "s ahead of the server's: set it"),
    ],
)
def test_what_stands_in_the_way_of_a_connection_is_named(
    tmp_path: Path,
    served: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    now: int,
    clock: float,
    host: str,
    words: str,
) -> None:
    """``now``: years by which the clock was wrong when the certificate was made."""
    make(tmp_path, "server")
    authority = tmp_path / "ca.pem"
    moved = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=365 * now)
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "datetime", SimpleNamespace(**vars(datetime)))
        certificates.datetime.datetime = SimpleNamespace(now=lambda zone: moved)  # type: ignore
        make(tmp_path, "server")
    found = connection_fault(host, served(tmp_path, clock=clock), authority)
    assert words in found if words else not found


def test_a_server_that_is_not_there_or_of_another_authority_is_named(
    tmp_path: Path, served: Callable[..., int]
) -> None:
    for name in ("own", "other"):
        make(tmp_path / name, "server")
    port = served(tmp_path / "own")
    other = tmp_path / "other" / "ca.pem"
    assert "another authority" in connection_fault("127.0.0.1", port, other)
    assert "Connection refused" in connection_fault("127.0.0.1", free_port(), other)


def test_a_port_that_is_taken_is_refused_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"--port {port}: cannot listen there"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("address", "split"),
    [
        ("cloud.example.org:9092", ("cloud.example.org", 9092)),
        ("[2001:db8::7]:9092", ("2001:db8::7", 9092)),
        ("2001:db8::7", None),
        ("cloud", None),
        (":9092", None),
        ("cloud:70000", None),
    ],
)
def test_addresses(address: str, split: tuple[str, int] | None) -> None:
    assert split_address(address) == split
