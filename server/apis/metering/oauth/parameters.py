"""What OAuth requests are made of: parameters, in a query or a form, and the clients that they name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from .errors import InvalidRequest

if TYPE_CHECKING:
    from ....config import OauthClient
    from ....request import ApiRequest

FORM = ("application/x-www-form-urlencoded",)
MAX_FORM = 64 << 10
_MAX_FIELDS = 100
_LOOPBACK = re.compile(r"(http://(?:127\.0\.0\.1|\[::1\]|localhost))(?::[0-9]{1,5})?((?:[/?].*)?)", re.DOTALL)


def form(body: bytes) -> list[tuple[str, str]]:
    """The fields of a form. Raises `InvalidRequest`."""
    try:
        return parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError:
        raise InvalidRequest("The form is malformed") from None


def each_once(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Parameters by name; those without a value count as left out. Raises `InvalidRequest` where one is repeated (RFC
    6749 3.1, 3.2)."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidRequest("A parameter is repeated")
        found[name] = value
    return {name: value for name, value in found.items() if value}


def find_client(request: ApiRequest, client_id: str | None) -> OauthClient | None:
    """The client that the configuration has under an id."""
    clients = request.config.apis.metering.oauth.clients
    return next((client for client in clients if client.id == client_id), None)


def may_redirect(client: OauthClient, uri: str) -> bool:
    """Whether a client registered a redirect URI: to the letter, save the port of a loopback one (RFC 8252 7.3)."""
    return uri in client.redirect_uris or any(
        _without_port(uri) == _without_port(registered) is not None for registered in client.redirect_uris
    )


def _without_port(uri: str) -> tuple[str, str] | None:
    """What stands before and after the port of a loopback URI; None for any other."""
    match = _LOOPBACK.fullmatch(uri)
    return None if match is None else (match[1], match[2])
