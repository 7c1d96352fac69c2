"""Keys and certificates, read back with cryptography and with TLS itself."""

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from mlecs_lightning.errors import ConfigurationError
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
