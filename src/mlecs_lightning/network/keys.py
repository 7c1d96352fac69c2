"""Keys and certificates: ``mlecs keys server`` and ``mlecs keys device NAME``.

The server has a certificate of an authority of its own, which devices trust and no other. Each
device has a key pair; the server knows the public half, and by it the client's name.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.names import client_name_faults

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

__all__ = ["device_key", "device_names", "keys", "public_key", "server_files"]

_YEARS = 5
_LOCAL = ("localhost", "127.0.0.1")


def server_files(folder: Path) -> tuple[Path, Path, Path]:
    """Return authority, certificate and private key of the server.

    Raises:
        ConfigurationError: If one is missing; it says how to make them.
    """
    files = tuple(folder / name for name in ("ca.pem", "server.pem", "server.key"))
    _check_files(files, remedy=f"make them with `mlecs keys server --host HOST --dir {folder}`")
    return files[0], files[1], files[2]


def device_key(folder: Path, client: str) -> tuple[Path, Path]:
    """Return the authority that a device trusts, and its private key.

    Raises:
        ConfigurationError: If one is missing; it says how to get it.
    """
    authority, own = folder / "ca.pem", folder / f"{client}.key"
    _check_files([authority], remedy="copy it from the server's folder of keys")
    _check_files([own], remedy=f"make it with `mlecs keys device {client} --dir {folder}`")
    return authority, own


def public_key(folder: Path, client: str) -> Path:
    """Return the public key of a client's device."""
    return folder / f"{client}.pub"


def device_names(folder: Path) -> list[str]:
    """Return the names of the devices whose public keys are at hand."""
    return sorted(path.stem for path in folder.glob("*.pub"))


def _check_files(files: list[Path] | tuple[Path, ...], *, remedy: str) -> None:
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise ConfigurationError(f"--keys: there is no {' and no '.join(missing)}; {remedy}")


def keys(words: list[str]) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser("mlecs keys", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    server = kinds.add_parser("server", help="certificate of the server, and its authority")
    server.add_argument(
        "--host",
        action="append",
        default=[],
        help="a name or address by which devices reach the server; may be given several times",
    )
    device = kinds.add_parser("device", help="key pair of a device")
    device.add_argument("name", help="the client's name in the configuration")
    for each in (server, device):
        each.add_argument("--dir", type=Path, default=Path("keys"), help="default: keys")
    given = parser.parse_args(words)
    try:
        given.dir.mkdir(parents=True, exist_ok=True)
        if given.kind == "server":
            print(make_server(given.dir, given.host))
        else:
            print(make_device(given.dir, given.name))
    except (ConfigurationError, OSError) as error:
        print(f"error: {error}")
        return 1
    return 0


def make_server(folder: Path, hosts: list[str]) -> str:
    """Write the certificate of a server; make the authority first if there is none.

    Args:
        folder: Where to write.
        hosts: Names and addresses of the server beside those of its own machine.

    Returns:
        What to do next.

    Raises:
        ConfigurationError: If cryptography is not installed.
    """
    with _named_extra():
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID
    authority, authority_key = folder / "ca.pem", folder / "ca.key"
    if not authority_key.is_file():
        key = _new_key()
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        subject_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = (
            _certificate("mlecs_lightning authority", "mlecs_lightning authority", key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(subject_id, critical=False)
        )
        _write_key(authority_key, key)
        _write_certificate(authority, builder, key)
    signer = _read_key(authority_key)
    key = _new_key()
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    names = x509.SubjectAlternativeName([_name(h) for h in dict.fromkeys([*_LOCAL, *hosts])])
    builder = (
        _certificate("mlecs_lightning server", "mlecs_lightning authority", key)
        .add_extension(names, critical=False)
        .add_extension(issuer_id, critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    _write_key(folder / "server.key", key)
    _write_certificate(folder / "server.pem", builder, signer)
    return f"{folder / 'server.pem'} is written; copy {authority} to every device"


def make_device(folder: Path, name: str) -> str:
    """Write the key pair of a device; an existing one stays.

    Args:
        folder: Where to write.
        name: The client's name.

    Returns:
        What to do next.

    Raises:
        ConfigurationError: If the name is no client's, or cryptography is not installed.
    """
    if faults := client_name_faults([name]):
        raise ConfigurationError("\n".join(faults))
    with _named_extra():
        from cryptography.hazmat.primitives import serialization
    private, public = folder / f"{name}.key", public_key(folder, name)
    if not private.is_file():
        key = _new_key()
        text = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        _write_private(private, text)
        form = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        public.write_bytes(key.public_key().public_bytes(*form) + b"\n")
    return f"{private} stays on the device; copy {public} into the server's folder of keys"


@contextlib.contextmanager
def _named_extra():  # type: ignore[no-untyped-def]  # noqa: ANN202
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            "keys need the package cryptography: pip install 'mlecs_lightning[flower]'"
        ) from error


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _certificate(
    subject: str, issuer: str, key: EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
    )


def _name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_key(path: Path, key: EllipticCurvePrivateKey) -> None:
    from cryptography.hazmat.primitives import serialization

    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write_private(path, text)


def _write_private(path: Path, text: bytes) -> None:
    """Write a file that only its owner can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)


def _read_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization

    return serialization.load_pem_private_key(path.read_bytes(), None)  # type: ignore[return-value]


def _write_certificate(
    path: Path, builder: x509.CertificateBuilder, signer: EllipticCurvePrivateKey
) -> None:
    from cryptography.hazmat.primitives import hashes, serialization

    signed = builder.sign(signer, hashes.SHA256())
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
