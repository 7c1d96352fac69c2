"""Key pairs and certificates, as PEM and OpenSSH files."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["write_authority", "write_key_pair", "write_public_key", "write_server_certificate"]

_YEARS = 5
_LOCAL = ("localhost", "127.0.0.1", "::1")
_AUTHORITY = "mlecs_lightning authority"
_CURVE = ec.SECP384R1()  # what Flower expects of a SuperNode


def write_authority(certificate: Path, private: Path) -> None:
    """Write the certificate and the private key of a new authority."""
    key = ec.generate_private_key(_CURVE)
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
    own_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _certificate(_AUTHORITY, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(own_id, critical=False)
    )
    _write_private(private, key, serialization.PrivateFormat.PKCS8)
    _write_certificate(certificate, builder, key)


def write_server_certificate(
    certificate: Path, private: Path, *, authority: Path, hosts: Iterable[str]
) -> None:
    """Write a certificate and its private key, signed by an authority.

    Args:
        certificate: The file of the certificate.
        private: The file of its private key.
        authority: The private key of the authority.
        hosts: Names and addresses of the server, beside those of its own machine.
    """
    signer = serialization.load_pem_private_key(authority.read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(_CURVE)
    names = x509.SubjectAlternativeName([_host(h) for h in dict.fromkeys([*_LOCAL, *hosts])])
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = (
        _certificate("mlecs_lightning server", key)
        .add_extension(names, critical=False)
        .add_extension(issuer_id, critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    _write_private(private, key, serialization.PrivateFormat.PKCS8)
    _write_certificate(certificate, builder, signer)


def write_key_pair(private: Path, public: Path) -> None:
    """Write a key pair in OpenSSH's format, by which Flower knows a device."""
    key = ec.generate_private_key(_CURVE)
    _write_private(private, key, serialization.PrivateFormat.OpenSSH)
    write_public_key(private, public)


def write_public_key(private: Path, public: Path) -> None:
    """Write the public half of a key pair, from the file of the private one."""
    key = serialization.load_ssh_private_key(private.read_bytes(), None)
    form = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    public.write_bytes(key.public_key().public_bytes(*form) + b"\n")


def _certificate(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(_AUTHORITY))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_private(
    path: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat
) -> None:
    """Write a private key into a file that only its owner can read."""
    text = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)


def _write_certificate(
    path: Path, builder: x509.CertificateBuilder, signer: ec.EllipticCurvePrivateKey
) -> None:
    signed = builder.sign(signer, hashes.SHA256())
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
