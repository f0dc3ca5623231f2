"""HTTPS by the server itself: its certificate, which can be exchanged while it serves (contracts/leaderboard.md,
"HTTPS")."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.x509 import Certificate

    from .config import TlsConfig

_T = TypeVar("_T")

HANDSHAKE_SECONDS = 10.0
"""How long a client may take to agree on a connection."""
SHUTDOWN_SECONDS = 5.0
"""How long a connection that was closed waits for the client's farewell."""

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class TlsError(Exception):
    """Certificate and key are of no use; ``problems``: a line for each, the setting and what is wrong with its file."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Tls:
    """What the server shows and asks for when a client opens a TLS connection.

    Reads files when it is made and in `reload`; raises `TlsError`.
    """

    certificate: Certificate
    """The server's own, first of the chain."""

    def __init__(self, cert: Path, key: Path, min_version: str) -> None:
        """``min_version``: 1.2 or 1.3."""
        self._files = cert, key
        self._min_version = _VERSIONS[min_version]
        self.reload()
        self.context = self._latest
        """For listening sockets. It shows the files that were read last."""
        # OpenSSL asks it in every handshake, also for a client that names no server.
        self.context.sni_callback = self._show_latest

    @classmethod
    def of(cls, config: TlsConfig) -> Tls | None:
        """As the configuration has it; None where that has no certificate."""
        if config.cert is None or config.key is None:
            return None
        return cls(Path(config.cert), Path(config.key), config.min_version)

    def reload(self) -> None:
        """Reads certificate and key again, for connections from now on; where it raises, all stays as it was."""
        certificate = _read_pair(*self._files)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._min_version
        try:
            context.load_cert_chain(*self._files, password="")  # without one OpenSSL might ask the terminal
        except OSError as error:  # ssl.SSLError, which is one: OpenSSL finds the key too short, for example
            reason = getattr(error, "reason", None) or error.strerror or str(error)
            what = reason.replace("_", " ").lower()
            raise TlsError([f"server.tls.cert: {self._files[0]} cannot be used: {what}"]) from error
        self._latest, self.certificate = context, certificate

    def _show_latest(self, connection: ssl.SSLSocket | ssl.SSLObject, *_: object) -> None:
        connection.context = self._latest


def _read_pair(cert: Path, key: Path) -> Certificate:
    """The certificate, the first in its file, once it is known that the key is its."""
    wrong: list[str] = []

    def read(setting: str, file: Path, parse: Callable[[bytes], _T], what: str) -> _T | None:
        try:
            return parse(file.read_bytes())
        except OSError as error:
            wrong.append(f"{setting}: {file} cannot be read: {error.strerror}")
        except _PassphraseError:
            wrong.append(f"{setting}: {file} is protected by a passphrase; give a key without one")
        except ValueError:
            wrong.append(f"{setting}: {file} holds no {what} in PEM that can be read")
        return None

    shown = read("server.tls.cert", cert, _certificate, "certificate")
    proof = read("server.tls.key", key, _public_key, "private key")
    if shown is None or proof is None:
        raise TlsError(wrong)
    certificate, public_key = shown
    if proof != public_key:
        raise TlsError([f"server.tls.key: {key} is not the key of the certificate in {cert}"])
    return certificate


class _PassphraseError(Exception):
    """A key is encrypted."""


def _certificate(pem: bytes) -> tuple[Certificate, object]:
    """The first certificate and its public key; raises ValueError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509 import load_pem_x509_certificates

    try:
        certificate = load_pem_x509_certificates(pem)[0]
        return certificate, certificate.public_key()
    except UnsupportedAlgorithm as error:
        raise ValueError from error


def _public_key(pem: bytes) -> object:
    """Of a private key; raises ValueError or `_PassphraseError`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(pem, None).public_key()
    except UnsupportedAlgorithm as error:
        raise ValueError from error
    except TypeError as error:
        raise _PassphraseError from error
