"""The `format`s of schemas/config.json: what a text setting must look like, and how to say so.

Each is checked when the configuration is loaded, so that nothing of it can fail later.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z0-9:/._~!$&'()*+,;=%\[\]-]+")
_SEGMENTS = re.compile(r"(/[A-Za-z0-9._~-]+)+/?")
_AUTHORITY = re.compile(r"(?:\[(?P<literal>[^\]]*)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FACTORY = re.compile(r"(?!(?:memory|postgres|postgresql):)[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_COLLECTION = re.compile(r"[a-z][a-z0-9_-]{0,49}")
_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
_URI = re.compile(r"[A-Za-z0-9:/?._~!$&'()*+,;=%@\[\]-]+")  # RFC 3986, without a fragment


class Address(NamedTuple):
    """Where to listen: a TCP host (no brackets) and port; with ``port`` None, the path of a Unix socket."""

    host: str
    port: int | None

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.port is None or is_loopback_host(self.host)


class Format(NamedTuple):
    """``valid`` says whether a text has it; ``what`` it is, and an ``example``, say what would be right."""

    valid: Callable[[str], bool]
    what: str
    example: str = ""


def parse_address(text: str) -> Address:
    """`HOST:PORT`, with an IPv6 address in brackets, or `unix:PATH`; raises ValueError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or not _is_path(path):
            raise ValueError(f"{text!r} names no socket")
        return Address(path, None)
    host, port = _split_authority(text)
    if port is None:
        raise ValueError(f"{text!r} has no port")
    return Address(host, port)


def format_address(address: Address) -> str:
    """The text that `parse_address` reads."""
    if address.port is None:
        return f"unix:{address.host}"
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"


def is_loopback_host(host: str) -> bool:
    """Whether a host name or a bare IP literal means this machine and no other (RFC 6761 6.3)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower().removesuffix(".")
        return name == "localhost" or name.endswith(".localhost")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _accepts(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def valid(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return valid


def _is_host_name(text: str) -> bool:
    """A DNS name, or an IP literal without brackets."""
    if ":" in text:
        return _accepts(ipaddress.IPv6Address)(text)
    name = text.removesuffix(".")
    if name.rpartition(".")[2].isdecimal():  # no top-level domain is a number: an address was meant
        return _accepts(ipaddress.IPv4Address)(text)
    return len(name) <= 253 and all(map(_LABEL.fullmatch, name.split(".")))


def _is_origin(text: str) -> bool:
    """RFC 6454: scheme, host and port, nothing after it."""
    scheme, separator, authority = text.partition("://")
    return bool(_SCHEME.fullmatch(scheme) and separator) and _accepts(_split_authority)(authority)


def _split_authority(text: str) -> tuple[str, int | None]:
    """The host, without brackets, and the port of HOST or HOST:PORT; raises ValueError."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not HOST or HOST:PORT")
    literal, name, port = match["literal"], match["name"], match["port"]
    if literal is not None:
        name = str(ipaddress.IPv6Address(literal))
    elif not _is_host_name(name):
        raise ValueError(f"{name!r} is not a host name")
    if port is not None and int(port) > 65535:
        raise ValueError(f"{port} is not a port")
    return name, None if port is None else int(port)


def _is_public_url(text: str) -> bool:
    """http(s), a host, perhaps a port and a path; no user, query or fragment. Empty: there is none."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    if not text:
        return True
    if not _URL.fullmatch(text) or parts.scheme not in ("http", "https"):
        return False
    return _accepts(_split_authority)(parts.netloc)


def _is_base_path(text: str) -> bool:
    return text == "/" or (bool(_SEGMENTS.fullmatch(text)) and not {".", ".."} & set(text.split("/")))


def _is_path(text: str) -> bool:
    return not _CONTROL.search(text)


def _is_command(text: str) -> bool:
    try:
        return bool(shlex.split(text)) and _is_path(text)
    except ValueError:  # a quotation mark without its twin
        return False


def _is_cron(text: str) -> bool:
    from cronsim import CronSim, CronSimError

    try:
        CronSim(text, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError:
        return False
    return True


def _is_redirect_uri(text: str) -> bool:
    """RFC 6749 3.1.2: absolute, without a fragment; http alone on loopback (RFC 9700 2.1, RFC 8252 7.3), else https or
    a scheme of the app's own, which has a dot in it (RFC 8252 7.1)."""
    scheme, colon, rest = text.partition(":")
    if not colon or not rest or not _URI.fullmatch(text):
        return False
    if scheme not in ("http", "https"):
        return "." in scheme and bool(_SCHEME.fullmatch(scheme))
    try:
        host, _ = _split_authority(urlsplit(text).netloc)
    except ValueError:
        return False
    return scheme == "https" or is_loopback_host(host)


def _is_client_id(text: str) -> bool:
    return bool(_CLIENT_ID.fullmatch(text))


def is_collection_name(text: str) -> bool:
    """Whether anybody's collection may have this name."""
    return bool(_COLLECTION.fullmatch(text))


def is_field_name(text: str) -> bool:
    """Whether a member of documents with this name may be indexed; their id always is."""
    return bool(text) and text[0] != "-" and "\0" not in text and text not in ("id", "_meta")


def _is_storage_url(text: str) -> bool:
    scheme, _, path = text.partition(":")
    if scheme in ("file", "sqlite"):
        # `sqlite:///x.db` is a relative path to some tools and an absolute one to others
        return path not in ("", ":memory:") and not path.startswith("//") and _is_path(path)
    return text in ("", "memory:") or bool(_FACTORY.fullmatch(text))


def _is_rate_limit(text: str) -> bool:
    from limits import parse_many  # slow to import, and the defaults need no check

    try:
        limits = parse_many(text)
    except ValueError:
        return False
    return len(limits) == 1 and limits[0].amount > 0


FORMATS = {
    "base-path": Format(_is_base_path, "a path", "/homeport"),
    "bind-host": Format(_is_host_name, "an address or host name without a port", "127.0.0.1"),
    "client-id": Format(_is_client_id, "an id of up to 100 of A-Z, a-z, 0-9, ., _ and -,", "desktop"),
    "collection-name": Format(is_collection_name, "a name of up to 50 of a-z, 0-9, _ and -, first a letter,", "notes"),
    "command": Format(_is_command, "a command with its arguments", "claude"),
    "cron": Format(_is_cron, "a cron expression", "0 0 1 * *"),
    "field-name": Format(is_field_name, "the name of a field other than id and _meta", "title"),
    "host-name": Format(_is_host_name, "a host name or address without scheme and port", "sync.example.com"),
    "ip-network": Format(_accepts(ipaddress.ip_network), "an address or network", "10.0.0.0/8"),
    "listen-address": Format(_accepts(parse_address), "HOST:PORT or unix:PATH", "[::1]:8000"),
    "origin": Format(_is_origin, "an origin, without a path", "https://app.example.com"),
    "path": Format(_is_path, "a path without control characters", "data/homeport.db"),
    "public-url": Format(_is_public_url, "an http or https URL", "https://sync.example.com"),
    "rate-limit": Format(_is_rate_limit, "a rate limit", "600/hour"),
    "redirect-uri": Format(
        _is_redirect_uri, "https, http on loopback, or a scheme with a dot,", "http://127.0.0.1/callback"
    ),
    "storage-url": Format(
        _is_storage_url,
        "memory:, file:PATH, sqlite:PATH or package.module:factory (postgresql: is not available in this version)",
    ),
}
