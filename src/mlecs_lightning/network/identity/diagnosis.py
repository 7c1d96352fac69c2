"""Why a device and its server do not come together, in words with a remedy.

Flower's own logs say no more than that a connection failed.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

__all__ = ["certificate_fault", "connection_fault", "split_address"]

_EARLIER, _LATER = 300.0, 5.0
"""Seconds that a device's clock may be behind and ahead of the server's, in Flower."""

# Codes of OpenSSL (x509_vfy.h).
_NOT_YET, _EXPIRED, _OTHER_NAME = 9, 10, (62, 64)


def split_address(address: str) -> tuple[str, int] | None:
    """Return host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; ``None`` if it is neither."""
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    return (host, int(port)) if host and port.isdigit() and int(port) < 2**16 else None


def certificate_fault(host: str, port: int, authority: Path, *, timeout: float = 5.0) -> str:
    """Return why a device would not trust the certificate of a server; empty if it would.

    Args:
        host: The server.
        port: Its port.
        authority: The certificate of the authority that the device trusts.
        timeout: Seconds to wait.
    """
    trusting = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            socket.create_connection((host, port), timeout) as plain,
            trusting.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return f"{host}, port {port}: {_certificate_fault(error, host)}"
    except OSError:
        return ""  # whatever it is, it is not the certificate


def connection_fault(host: str, port: int, authority: Path, *, timeout: float = 5.0) -> str:
    """Return what stands in the way of a connection to a server; empty if nothing is seen.

    Arguments are those of `certificate_fault`.
    """
    if fault := certificate_fault(host, port, authority, timeout=timeout):
        return fault
    trusting = ssl.create_default_context(cafile=str(authority))
    connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=trusting)
    try:
        connection.request("HEAD", "/")
        told = connection.getresponse().getheader("Date")
    except OSError as error:
        return f"{host}, port {port}: no connection ({error or type(error).__name__})"
    except http.client.HTTPException:
        return ""  # it is no HTTP, as with other versions of Flower
    finally:
        connection.close()
    return _clock_fault(told)


def _certificate_fault(error: ssl.SSLCertVerificationError, host: str) -> str:
    if error.verify_code == _NOT_YET:
        return "its certificate is not valid yet: set the clock of this machine"
    if error.verify_code == _EXPIRED:
        return (
            "its certificate has expired: make a new one with `mlecs keys server` on the server, "
            "or set the clock of this machine"
        )
    if error.verify_code in _OTHER_NAME:
        return (
            f"its certificate has other names: `mlecs keys server --host {host}` on the server "
            "makes one for this address"
        )
    return (
        f"its certificate is of another authority ({error.verify_message}): copy ca.pem from the "
        "server's folder of keys"
    )


def _clock_fault(told: str | None) -> str:
    """Compare the server's clock, which tells whole seconds, with that of this machine."""
    try:
        ahead = time.time() - parsedate_to_datetime(told or "").timestamp()
    except ValueError:
        return ""
    if -_EARLIER < ahead < _LATER + 1:
        return ""
    way = "ahead of" if ahead > 0 else "behind"
    return f"the clock of this machine is {abs(ahead):.0f} s {way} the server's: set it"
