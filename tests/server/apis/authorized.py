"""What the tests of metering's OAuth share: an app that asks people for access to their tokens."""

import base64
import json
import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from html import unescape
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from .conftest import Answer, Serve
from .licensed import NOW, Shop, bearer, open_shop

REDIRECT = "https://app.example.com/callback"
LOOPBACK = "http://127.0.0.1/callback"
APP = {"id": "desktop", "name": "Desktop <app>", "redirect_uris": [REDIRECT, LOOPBACK, "com.example.app:/callback"]}
OTHER_APP = {"id": "other", "name": "Other", "redirect_uris": [REDIRECT]}
CLIENTS = {"apis.metering.oauth.clients": [APP, OTHER_APP]}
VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
"""Both of RFC 7636, appendix B."""
REQUEST = {
    "response_type": "code",
    "client_id": "desktop",
    "redirect_uri": REDIRECT,
    "state": 'a state of "things" & <more> = %41',
    "code_challenge": CHALLENGE,
    "code_challenge_method": "S256",
}
_INPUT = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)">')


@dataclass
class App:
    """An app, and a server with a license for its user."""

    shop: Shop
    key: str
    license_id: str

    async def authorize(self, **changes: Any) -> Answer:
        """Opens the page; with ``...`` a parameter is left out."""
        asked = {name: value for name, value in (REQUEST | changes).items() if value is not ...}
        return await self.open(urlencode(asked, doseq=True))

    async def open(self, query: str) -> Answer:
        return await self.shop.server.get(f"/oauth2/authorize?{query}", allow_redirects=False)

    async def log_in(self, page: Answer, key: str | None = None, **fields: str) -> Answer:
        """Posts the page's form, as a browser does."""
        form = {name: unescape(value) for name, value in _INPUT.findall(page.content.decode())}
        return await self.post("authorize", form | {"license_key": key or self.key} | fields, allow_redirects=False)

    async def code(self, **changes: Any) -> str:
        """A code for the license."""
        return sent_back(await self.log_in(await self.authorize(**changes)))["code"]

    async def post(self, endpoint: str, fields: Any, **request: Any) -> Answer:
        headers = {"Content-Type": "application/x-www-form-urlencoded"} | request.pop("headers", {})
        data = fields if isinstance(fields, bytes) else urlencode(fields).encode()
        return await self.shop.server("POST", f"/oauth2/{endpoint}", data=data, headers=headers, **request)

    async def redeem(self, code: str, **changes: str) -> Answer:
        fields = {"grant_type": "authorization_code", "code": code, "client_id": "desktop", "redirect_uri": REDIRECT}
        return await self.post("token", fields | {"code_verifier": VERIFIER} | changes)

    async def refresh(self, token: str, **changes: str) -> Answer:
        fields = {"grant_type": "refresh_token", "refresh_token": token, "client_id": "desktop"}
        return await self.post("token", fields | changes)

    async def tokens(self) -> Any:
        """What a code brings."""
        answer = await self.redeem(await self.code())
        assert answer.status == 200, answer.content
        return answer.json

    async def revoke(self, token: str, client_id: str = "desktop") -> Answer:
        return await self.post("revoke", {"token": token, "client_id": client_id})

    async def status(self, access_token: str) -> int:
        """What a request with an access token is answered."""
        return (await self.shop.balance(access_token)).status


async def open_app(serve: Serve, settings: dict[str, Any] | None = None, *, now: str = NOW) -> App:
    shop = await open_shop(serve, CLIENTS | (settings or {}), now=now)
    license_, key = await shop.license()
    return App(shop, key, license_.license_id)


def sent_back(answer: Answer, to: str = REDIRECT) -> dict[str, str]:
    """What the app is told at its redirect URI."""
    assert answer.status == 303, answer.content
    location = answer.headers["Location"]
    assert location.startswith(f"{to}?")
    return dict(parse_qsl(urlsplit(location).query, strict_parsing=True))


def part(token: str, place: int) -> Any:
    """The head (0) or the claims (1) of a JWT."""
    segment = token.split(".")[place]
    return json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))


def segment(value: Any) -> str:
    """A part of a JWT."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def pkce() -> tuple[str, str]:
    """A verifier and its challenge."""
    verifier = secrets.token_urlsafe(48)
    return verifier, base64.urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()


__all__ = ["CHALLENGE", "VERIFIER", "App", "bearer", "open_app", "part", "pkce", "segment", "sent_back"]
