"""contracts/metering.md, "OAuth 2.0": the whole flow with a client library that others wrote and in a browser, and the
answers word for word; on every back end."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from authlib.integrations.httpx_client import AsyncOAuth2Client  # type: ignore[import-untyped]  # it has none
from joserfc import jwt
from joserfc.jwk import KeySet

from ..browser import Tab, chromium
from ..server.apis.authorized import REDIRECT, REQUEST, App, open_app, part, pkce, sent_back
from ..server.apis.conftest import Serve, on_memory, until
from ..server.apis.licensed import NOW

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
PROXIED = {"server.public_url": "https://sync.example.com/base/"}
EXPOSED = {"server.public_url": "https://sync.example.com/base", "server.base_path": "/base"}


@pytest.fixture
async def app(serve: Serve) -> App:
    return await open_app(serve)


async def metadata(app: App) -> Any:
    return (await app.shop.server.get("/.well-known/oauth-authorization-server")).json


async def test_the_whole_flow(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discovery, authorization with PKCE, token, use, refresh, use, revocation, with authlib's client."""
    monkeypatch.setenv("AUTHLIB_INSECURE_TRANSPORT", "true")  # http, on loopback
    server, verifier = await metadata(app), pkce()[0]
    async with AsyncOAuth2Client(
        client_id="desktop",
        redirect_uri=REDIRECT,
        code_challenge_method="S256",
        token_endpoint_auth_method="none",
        revocation_endpoint_auth_method="none",
    ) as client:
        url, state = client.create_authorization_url(server["authorization_endpoint"], code_verifier=verifier)
        page = await app.open(url.partition("?")[2])
        location = (await app.log_in(page)).headers["Location"]
        token = await client.fetch_token(
            server["token_endpoint"], authorization_response=location, state=state, code_verifier=verifier
        )
        assert (token["token_type"], token["expires_in"]) == ("Bearer", 3600)
        balance = f"{app.shop.server.url}/api/tokens/balance"
        assert (await client.get(balance)).json()["tokens_balance"] == 250_000
        fresh = await client.refresh_token(server["token_endpoint"], refresh_token=token["refresh_token"])
        assert fresh["refresh_token"] != token["refresh_token"]
        assert (await client.get(balance)).status_code == 200
        await client.revoke_token(server["revocation_endpoint"], token=fresh["refresh_token"])
        assert (await client.get(balance)).status_code == 401


async def test_token(app: App) -> None:
    answer = await app.redeem(await app.code())
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json
    for kind in ("access_token", "refresh_token"):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", body.pop(kind))
    assert (answer.status, body) == (200, {"token_type": "Bearer", "expires_in": 3600})


async def test_a_refresh_brings_the_same(app: App) -> None:
    first = await app.tokens()
    answer = await app.refresh(first["refresh_token"])
    assert (answer.status, set(answer.json)) == (200, set(first))
    assert answer.json["refresh_token"] != first["refresh_token"]


@pytest.mark.parametrize("exposed", [False, True], ids=["on loopback", "with a public URL"])
async def test_an_access_token_is_a_jwt(serve: Serve, exposed: bool) -> None:
    """RFC 9068, and anybody can check it who reads the metadata."""
    app = await open_app(serve, {"server.public_url": EXPOSED["server.public_url"]} if exposed else None)
    token = (await app.tokens())["access_token"]
    issuer = (await metadata(app))["issuer"]
    assert issuer == ("https://sync.example.com/base" if exposed else app.shop.server.url)
    keys = KeySet.import_key_set((await app.shop.server.get("/.well-known/jwks.json")).json)
    decoded = jwt.decode(token, keys, algorithms=["ES256"])
    assert decoded.header == {"typ": "at+jwt", "alg": "ES256", "kid": next(iter(keys)).kid}
    claims = dict(decoded.claims)
    assert re.fullmatch(UUID, claims.pop("jti"))
    assert re.fullmatch(r"[0-9a-f]{40}", claims.pop("grant"))
    now = app.shop.server.clock.now() // 1_000_000
    user = (await app.shop.licenses.find(app.key)).user_id  # type: ignore[union-attr]  # it is there
    assert claims == {
        "iss": issuer,
        "aud": issuer,
        "sub": user,
        "client_id": "desktop",
        "iat": now,
        "exp": now + 3600,
    }


async def test_iss_and_state_are_returned(app: App) -> None:
    """RFC 9207, with success and with an error."""
    told = sent_back(await app.log_in(await app.authorize()))
    assert (told.pop("iss"), told.pop("state")) == (app.shop.server.url, REQUEST["state"])
    assert set(told) == {"code"}
    told = sent_back(await app.authorize(response_type="token"))
    assert (told.pop("iss"), told.pop("state")) == (app.shop.server.url, REQUEST["state"])
    assert told == {"error": "unsupported_response_type", "error_description": "response_type must be code"}


async def test_codes_live_60_seconds_once(app: App) -> None:
    late, code = await app.code(), await app.code()
    assert (await app.redeem(code)).status == 200
    again = await app.redeem(code)
    assert (again.status, again.json) == (
        400,
        {
            "error": "invalid_grant",
            "error_description": "It was used before, or is another's; all that came of it is revoked",
        },
    )
    app.shop.server.clock.advance(60)
    answer = await app.redeem(late)
    assert (answer.status, answer.json) == (
        400,
        {"error": "invalid_grant", "error_description": "It is unknown, expired or revoked"},
    )


@on_memory
@pytest.mark.parametrize(
    ("settings", "path"),
    [
        pytest.param(EXPOSED, "/base/.well-known/oauth-authorization-server", id="below the base path"),
        pytest.param(EXPOSED, "/.well-known/oauth-authorization-server/base", id="before it, as in RFC 8414 3.1"),
        pytest.param(PROXIED, "/.well-known/oauth-authorization-server", id="by a proxy that takes the path off"),
        pytest.param(PROXIED, "/.well-known/oauth-authorization-server/base", id="by a proxy, as in RFC 8414 3.1"),
    ],
)
async def test_metadata(serve: Serve, settings: dict[str, Any], path: str) -> None:
    app = await open_app(serve, settings)
    answer = await app.shop.server.get(path)
    issuer = "https://sync.example.com/base"
    assert (answer.status, answer.json) == (
        200,
        {
            "issuer": issuer,
            "authorization_endpoint": f"{issuer}/oauth2/authorize",
            "token_endpoint": f"{issuer}/oauth2/token",
            "revocation_endpoint": f"{issuer}/oauth2/revoke",
            "jwks_uri": f"{issuer}/.well-known/jwks.json",
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none"],
            "revocation_endpoint_auth_methods_supported": ["none"],
            "authorization_response_iss_parameter_supported": True,
        },
    )


@on_memory
async def test_metadata_is_nowhere_else(serve: Serve) -> None:
    app = await open_app(serve, EXPOSED)
    for path in ("/.well-known/oauth-authorization-server", "/.well-known/jwks.json/base", "/oauth2/token/base"):
        assert (await app.shop.server.get(path)).status == 404
    refused = await app.shop.server("POST", "/.well-known/oauth-authorization-server/base")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_keys_are_made_at_first_start(app: App) -> None:
    """Nobody has to ask for a token first. Of the keys their public halves are told, alone."""

    async def keys() -> Any:
        return (await app.shop.server.get("/.well-known/jwks.json")).json["keys"]

    async def made() -> bool:
        return bool(await keys())

    await until(made)
    (key,) = await keys()
    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("EC", "P-256", "sig", "ES256")


async def test_keys_outlive_a_server(serve: Serve) -> None:
    first = await open_app(serve, {"server.public_url": "http://127.0.0.1:8000"})
    token = (await first.tokens())["access_token"]
    second = await serve({"server.public_url": "http://127.0.0.1:8000"}, now=NOW)
    answer = await second.get("/api/tokens/balance", headers={"Authorization": f"Bearer {token}"})
    assert answer.status == 200
    assert (await second.get("/.well-known/jwks.json")).json["keys"][0]["kid"] == part(token, 0)["kid"]


# The page


@on_memory
async def test_the_page_is_plain(app: App) -> None:
    answer = await app.authorize(redirect_uri="http://127.0.0.1:51004/callback")
    html = answer.content.decode()
    assert (answer.status, "<script" in html, "Desktop &lt;app&gt;" in html) == (200, False, True)
    policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]+'", policy.pop("style-src"))
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'self' https: http://127.0.0.1:51004",
        "frame-ancestors": "'none'",
    }
    assert {name: answer.headers[name] for name in ("Cache-Control", "Referrer-Policy", "X-Content-Type-Options")} == {
        "Cache-Control": "no-store",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }


@on_memory
@pytest.mark.parametrize(
    ("uri", "sources"),
    [
        ("https://app.example.com/callback", "'self' https:"),
        ("http://localhost:5000/callback", "'self' https: http://localhost:5000"),
        ("http://[::1]:5000/callback", "'self' https: http:"),
        ("com.example.app:/callback", "'self' https: com.example.app:"),
    ],
)
async def test_where_its_form_may_lead(serve: Serve, uri: str, sources: str) -> None:
    client = {"id": "desktop", "name": "App", "redirect_uris": ["http://[::1]/callback", uri]}
    app = await open_app(serve, {"apis.metering.oauth.clients": [client]})
    policy = (await app.authorize(redirect_uri=uri)).headers["Content-Security-Policy"]
    assert f"form-action {sources};" in policy


@pytest.fixture
async def callback() -> AsyncIterator[tuple[str, "asyncio.Queue[web.Request]"]]:
    """Where an app on this machine waits for its user to come back, and who came."""
    came: asyncio.Queue[web.Request] = asyncio.Queue()

    async def answer(request: web.Request) -> web.Response:
        await came.put(request)
        return web.Response(text='<title>done</title><link rel="icon" href="data:,">', content_type="text/html")

    application = web.Application()
    application.router.add_get("/callback", answer)
    async with TestServer(application) as server:
        yield f"http://127.0.0.1:{server.port}/callback", came


async def settled(tab: Tab, condition: str) -> None:
    """Waits for what is true of the next page, or of the one after that."""
    async with asyncio.timeout(30):
        while True:
            try:
                if await tab.run(condition):
                    return
            except AssertionError:  # the page went away meanwhile
                pass
            await asyncio.sleep(0.02)


@on_memory
async def test_in_a_browser(app: App, tmp_path: Path, callback: tuple[str, "asyncio.Queue[web.Request]"]) -> None:
    """A wrong key, and the right one; the browser then goes where the app waits, and does not tell where it was."""
    uri, came = callback
    verifier, challenge = pkce()
    query = f"response_type=code&client_id=desktop&redirect_uri={uri}&state=s&code_challenge={challenge}"
    page = f"{app.shop.server.url}/oauth2/authorize?{query}&code_challenge_method=S256"

    async def type_in(tab: Tab, key: str) -> None:
        await tab.run(f"document.querySelector('#license_key').value = '{key}'")
        await tab.run("setTimeout(() => document.querySelector('button').click())")

    async with chromium(tmp_path) as browser:
        tab = await browser.tab()
        await tab.open(page)
        assert await tab.run("document.querySelector('h1').innerText") == "Allow Desktop <app>"
        assert await tab.run("document.activeElement.id") == "license_key"
        await type_in(tab, "AAAA-BBBB-CCCC-0000")
        await settled(tab, "document.querySelector('[role=alert]')?.innerText === 'This license key is not known.'")
        await type_in(tab, app.key.lower())
        await settled(tab, "document.title === 'done'")
        request = await came.get()
        assert "Referer" not in request.headers
        assert (await app.redeem(request.query["code"], redirect_uri=uri, code_verifier=verifier)).status == 200
        assert not [error for error in tab.errors if "422" not in error]
