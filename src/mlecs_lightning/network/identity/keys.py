"""Keys and certificates: ``mlecs keys server`` and ``mlecs keys device NAME``.

The server has a certificate of an authority of its own, which devices trust and no other. Each
device has a key pair; the server knows the public half, and by it the client's name.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.extras import Need, require
from mlecs_lightning.names import client_name_faults

__all__ = ["device_key", "device_names", "keys", "public_key", "server_files"]


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
        require(Need("mlecs keys", "flower", ("cryptography",)))
        given.dir.mkdir(parents=True, exist_ok=True)
        if given.kind == "server":
            print(make_server(given.dir, given.host))
        else:
            print(make_device(given.dir, given.name))
    except (ConfigurationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make_server(folder: Path, hosts: list[str]) -> str:
    """Write the certificate of a server; make the authority first if there is none.

    Args:
        folder: Where to write.
        hosts: Names and addresses of the server, beside those of its own machine.

    Returns:
        What to do next.

    Raises:
        ConfigurationError: If there is one half of an authority, which devices may trust.
    """
    from mlecs_lightning.network.identity.certificates import (
        write_authority,
        write_server_certificate,
    )

    authority, key = folder / "ca.pem", folder / "ca.key"
    if authority.is_file() != key.is_file():
        there, gone = (authority, key) if authority.is_file() else (key, authority)
        raise ConfigurationError(
            f"--dir: there is {there} but no {gone}, allowed: both or neither; copy {gone} back "
            f"from where it is, or remove {there} to make a new authority, whose {authority.name} "
            "every device then needs"
        )
    if not key.is_file():
        write_authority(authority, key)
    files = (folder / "server.pem", folder / "server.key")
    write_server_certificate(*files, authority=key, hosts=hosts)
    return f"{files[0]} is written; copy {authority} to every device"


def make_device(folder: Path, name: str) -> str:
    """Write the key pair of a device; an existing private key stays.

    Args:
        folder: Where to write.
        name: The client's name.

    Returns:
        What to do next.

    Raises:
        ConfigurationError: If no client can have this name, or the private key of an existing
            public one is missing or cannot be read.
    """
    if faults := client_name_faults([name]):
        raise ConfigurationError("\n".join(faults))
    from mlecs_lightning.network.identity.certificates import write_key_pair, write_public_key

    private, public = folder / f"{name}.key", public_key(folder, name)
    if private.is_file():
        if not public.is_file():
            try:
                write_public_key(private, public)
            except (TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"--dir: {public} is missing, and {private} is no private key that it could be "
                    f"made from: {error}; remove {private} to make a new pair"
                ) from error
    elif public.is_file():
        raise ConfigurationError(
            f"--dir: there is {public} but no {private}, allowed: both or neither; copy {private} "
            f"back from where it is, or remove {public} to make a new pair, whose {public.name} "
            "the server then needs"
        )
    else:
        write_key_pair(private, public)
    return f"{private} stays on the device; copy {public} into the server's folder of keys"
