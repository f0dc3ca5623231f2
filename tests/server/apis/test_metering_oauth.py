"""Metering's OAuth 2.0 against those who attack it: each attack is refused, and what it has in hand is worth nothing
afterwards (RFC 6749, RFC 7636, RFC 9700)."""

import asyncio
import base64
import json
import re
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeport.server.apis.metering.licenses import SECRETS
from homeport.server.apis.metering.oauth import grants
from homeport.server.apis.metering.oauth.grants import GRANTS
from homeport.server.apis.metering.oauth.signing import SigningKeys
from homeport.server.config import load_config
from homeport.server.testing.running import running
from homeport.storage import Page, Query
from homeport.storage.times import DAY, HOUR, MINUTE, SECOND

from .authorized import (
    CHALLENGE,
    CLIENTS,
    LOOPBACK,
    REDIRECT,
    REQUEST,
    VERIFIER,
    App,
    open_app,
    part,
    segment,
    sent_back,
)
from .conftest import Answer, Log, Serve, on_memory
from .licensed import ELSEWHERE

PROXIED = {"server.trusted_proxies": ["127.0.0.1/32"]}
INVALID_GRANT = (400, "invalid_grant")


@pytest.fixture
async def app(serve: Serve) -> App:
    return await open_app(serve)


def refusal(answer: Answer) -> tuple[int, str]:
    """The status and the code of an error of the token endpoint."""
    body = answer.json
    assert set(body) == {"error", "error_description"}
    assert re.fullmatch(r"[\x20-\x21\x23-\x5b\x5d-\x7e]+", body["error_description"])  # RFC 6749 5.2
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.status, body["error"]


def is_page(answer: Answer, status: int, text: str) -> bool:
    """Whether people are told something, and sent nowhere."""
    return (
        (answer.status, answer.headers["Content-Type"]) == (status, "text/html; charset=utf-8")
        and "Location" not in answer.headers
        and text in answer.content.decode()
    )


async def move(app: App, by: int) -> None:
    app.shop.server.clock.advance(by / SECOND)


# Where people are sent


@on_memory
@pytest.mark.parametrize(
    "uri",
    [
        pytest.param("https://evil.example.com/callback", id="another host"),
        pytest.param("https://app.example.com.evil.com/callback", id="a host that begins like it"),
        pytest.param("https://app.example.com@evil.com/callback", id="a user"),
        pytest.param("https://app.example.com:8443/callback", id="another port, beyond loopback"),
        pytest.param("https://app.example.com/callback/", id="another path"),
        pytest.param("https://app.example.com/callback?next=evil", id="a query"),
        pytest.param("https://app.example.com/callback#x", id="a fragment"),
        pytest.param("https://app.example.com/x/../callback", id="dots"),
        pytest.param("https://APP.example.com/callback", id="another case"),
        pytest.param("http://app.example.com/callback", id="another scheme"),
        pytest.param("http://localhost/callback", id="another name of loopback"),
        pytest.param("http://127.0.0.1:80@evil.com/callback", id="a port that is a password"),
        pytest.param("http://127.0.0.1:80/callback/x", id="loopback, another path"),
        pytest.param("http://127.0.0.1:123456/callback", id="no port"),
        pytest.param("http://127.0.0.1:/callback", id="half a port"),
        pytest.param("http://127.0.0.1.evil.com/callback", id="a host that begins like loopback"),
        pytest.param("http://127.0.0.1:80\r\nX: y/callback", id="a line break"),
        pytest.param("com.example.app:/callback2", id="an app's, another path"),
        pytest.param("javascript:alert(1)", id="a script"),
        pytest.param("", id="none"),
        pytest.param([REDIRECT, REDIRECT], id="twice"),
        pytest.param([REDIRECT, "https://evil.example.com"], id="a second one"),
    ],
)
async def test_open_redirect(app: App, uri: Any) -> None:
    """Nobody is sent where the app did not say that it is, be the rest of the request right or wrong."""
    for changes in ({}, {"response_type": "token"}, {"code_challenge_method": "plain"}):
        assert is_page(await app.authorize(redirect_uri=uri, **changes), 400, "not registered for it")
    asked = urlencode(REQUEST | {"redirect_uri": uri, "license_key": app.key}, doseq=True).encode()
    assert is_page(await app.post("authorize", asked, allow_redirects=False), 400, "not registered for it")
    assert not (await app.shop.server.storage.find(Query(GRANTS))).records


@on_memory
@pytest.mark.parametrize("client_id", ["nobody", "", ["desktop", "desktop"], "<script>"], ids=str)
async def test_of_an_unknown_app(app: App, client_id: Any) -> None:
    answer = await app.authorize(client_id=client_id)
    assert is_page(answer, 400, "not registered with this server")
    assert b"<script>" not in answer.content


@on_memory
@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1:51004/callback", "http://127.0.0.1:1/callback", LOOPBACK, "com.example.app:/callback"],
)
async def test_of_a_loopback_uri_the_port_is_free(app: App, uri: str) -> None:
    page = await app.authorize(redirect_uri=uri)
    code = sent_back(await app.log_in(page), uri)["code"]
    assert refusal(await app.redeem(code, redirect_uri=LOOPBACK + "2")) == INVALID_GRANT
    code = sent_back(await app.log_in(page), uri)["code"]
    assert (await app.redeem(code, redirect_uri=uri)).status == 200


@on_memory
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"response_type": "token"}, "unsupported_response_type", id="implicit"),
        pytest.param({"response_type": ...}, "invalid_request", id="no response type"),
        pytest.param({"code_challenge_method": "plain"}, "invalid_request", id="the method plain"),
        pytest.param({"code_challenge_method": ...}, "invalid_request", id="no method, which is plain"),
        pytest.param({"code_challenge": ...}, "invalid_request", id="no challenge"),
        pytest.param({"code_challenge": "x" * 42}, "invalid_request", id="a short challenge"),
        pytest.param({"code_challenge": "x" * 42 + "="}, "invalid_request", id="a padded challenge"),
        pytest.param({"code_challenge": [CHALLENGE, "x" * 43]}, "invalid_request", id="two challenges"),
        pytest.param({"scope": ["a", "b"]}, "invalid_request", id="two of what is not read"),
    ],
)
async def test_apps_are_told(app: App, changes: dict[str, Any], error: str) -> None:
    """Of what is wrong with their request, with its state, by the page as by its form."""
    for answer in (
        await app.authorize(**changes),
        await app.post(
            "authorize",
            urlencode({k: v for k, v in (REQUEST | changes).items() if v is not ...}, doseq=True).encode(),
            allow_redirects=False,
        ),
    ):
        told = sent_back(answer)
        assert told.pop("error_description")
        assert told == {"error": error, "state": REQUEST["state"], "iss": app.shop.server.url}
    assert not (await app.shop.server.storage.find(Query(GRANTS))).records


@on_memory
@pytest.mark.parametrize("state", ["ü", "a\r\nSet-Cookie: x", "\0", ["a", "b"]], ids=ascii)
async def test_a_state_that_is_none_is_not_sent_back(app: App, state: Any) -> None:
    told = sent_back(await app.authorize(state=state))
    assert (told["error"], "state" in told) == ("invalid_request", False)


async def test_without_a_state(app: App) -> None:
    told = sent_back(await app.log_in(await app.authorize(state=...)))
    assert set(told) == {"code", "iss"}


@on_memory
async def test_who_cancels_is_sent_back(app: App) -> None:
    told = sent_back(await app.log_in(await app.authorize(), key="", cancel="1"))
    assert (told["error"], told["state"]) == ("access_denied", REQUEST["state"])


# License keys on the page


@on_memory
@pytest.mark.parametrize("key", ["AAAA-BBBB-CCCC-0000", "no key", "' OR 1=1", "<script>alert(1)</script>"])
async def test_with_a_key_that_nobody_has(app: App, key: str) -> None:
    answer = await app.log_in(await app.authorize(), key=key)
    assert is_page(answer, 422, "This license key is not known.")
    assert b"<script" not in answer.content
    assert key not in answer.content.decode()
    assert sent_back(await app.log_in(answer))["code"]


async def test_with_the_key_of_an_inactive_license(app: App) -> None:
    await app.shop.licenses.deactivate(app.license_id)
    assert is_page(await app.log_in(await app.authorize()), 422, "This license is not active.")


async def test_a_key_as_people_type_it(app: App) -> None:
    answer = await app.log_in(await app.authorize(), key=f" {app.key.lower()} ")
    assert sent_back(answer)["code"]


@on_memory
async def test_keys_cannot_be_guessed_on_the_page(serve: Serve) -> None:
    app = await open_app(serve, PROXIED)
    fields = {**REQUEST, "license_key": "AAAA-BBBB-CCCC-0000"}
    answers = [await app.post("authorize", fields, headers=ELSEWHERE) for _ in range(11)]
    assert [answer.status for answer in answers] == [422] * 10 + [429]
    assert "Retry-After" in answers[-1].headers
    assert (await app.post("authorize", fields | {"license_key": app.key}, headers=ELSEWHERE)).status == 429


@on_memory
async def test_a_keys_requests_count_on_the_page(serve: Serve) -> None:
    app = await open_app(serve, {"apis.metering.rate_limit": "10/minute"})
    page = await app.authorize()
    assert [(await app.log_in(page)).status for _ in range(9)] == [303] * 9
    assert (await app.shop.balance(app.key)).status == 200
    assert (await app.log_in(page)).status == 429
    assert (await app.shop.balance(app.key)).status == 429


@on_memory
@pytest.mark.parametrize("origin", ["https://evil.example.com", "null"])
async def test_another_sites_form(app: App, origin: str) -> None:
    """Whoever has a browser post a form with a key of their own, to have it use their tokens."""
    answer = await app.post("authorize", REQUEST | {"license_key": app.key}, headers={"Origin": origin})
    assert answer.status == 403


# Codes


async def test_code_replay(app: App) -> None:
    """A code is good once; the second time all that came of it is revoked."""
    code = await app.code()
    tokens = (await app.redeem(code)).json
    assert await app.status(tokens["access_token"]) == 200
    assert refusal(await app.redeem(code)) == INVALID_GRANT
    assert await app.status(tokens["access_token"]) == 401
    assert refusal(await app.refresh(tokens["refresh_token"])) == INVALID_GRANT


async def test_code_replay_after_a_refresh(app: App) -> None:
    code = await app.code()
    tokens = (await app.refresh((await app.redeem(code)).json["refresh_token"])).json
    assert refusal(await app.redeem(code)) == INVALID_GRANT
    assert await app.status(tokens["access_token"]) == 401


async def test_a_code_at_once(app: App) -> None:
    """Of many who come with one code at most one has tokens, and those are revoked."""
    code = await app.code()
    answers = await asyncio.gather(*(app.redeem(code) for _ in range(6)))
    winners = [answer.json for answer in answers if answer.status == 200]
    assert len(winners) <= 1
    assert [await app.status(tokens["access_token"]) for tokens in winners] == [401] * len(winners)


@on_memory
@pytest.mark.parametrize(
    "verifier", [VERIFIER[:-1] + "X", CHALLENGE, "x", "x" * 129, VERIFIER + "\n", "ü" * 43], ids=ascii
)
async def test_wrong_verifier(app: App, verifier: str) -> None:
    """Who has a code but not the verifier gets nothing, and the code is used up."""
    code = await app.code()
    assert refusal(await app.redeem(code, code_verifier=verifier)) == INVALID_GRANT
    assert refusal(await app.redeem(code)) == INVALID_GRANT


async def test_plain_verifier(app: App) -> None:
    """A challenge is never taken for its own verifier."""
    code = await app.code(code_challenge=VERIFIER)
    assert refusal(await app.redeem(code)) == INVALID_GRANT


async def test_mix_of_clients_with_a_code(app: App) -> None:
    code = await app.code()
    assert refusal(await app.redeem(code, client_id="other")) == INVALID_GRANT
    assert refusal(await app.redeem(code)) == INVALID_GRANT


async def test_a_code_with_another_redirect_uri(app: App) -> None:
    code = await app.code()
    assert refusal(await app.redeem(code, redirect_uri=LOOPBACK)) == INVALID_GRANT


async def test_expired_code(app: App) -> None:
    code, late = await app.code(), await app.code()
    await move(app, MINUTE - SECOND)
    assert (await app.redeem(code)).status == 200
    await move(app, SECOND)
    assert refusal(await app.redeem(late)) == INVALID_GRANT


async def test_a_code_is_no_refresh_token(app: App) -> None:
    code = await app.code()
    assert refusal(await app.refresh(code)) == INVALID_GRANT
    token = (await app.tokens())["refresh_token"]
    assert refusal(await app.redeem(token)) == INVALID_GRANT


async def test_a_code_of_a_device_that_is_kept_out(app: App) -> None:
    code = await app.code()
    await app.shop.licenses.deactivate(app.license_id)
    assert refusal(await app.redeem(code)) == INVALID_GRANT


# Refresh tokens


async def test_refresh_tokens_rotate(app: App) -> None:
    tokens = await app.tokens()
    seen = {tokens["refresh_token"]}
    for _ in range(5):
        tokens = (await app.refresh(tokens["refresh_token"])).json
        assert await app.status(tokens["access_token"]) == 200
        assert tokens["refresh_token"] not in seen
        seen.add(tokens["refresh_token"])


async def test_reused_refresh_token(app: App) -> None:
    """Whoever of the two has the old one: nothing of the family is good any more. Another family is."""
    first, other = await app.tokens(), await app.tokens()
    second = (await app.refresh(first["refresh_token"])).json
    third = (await app.refresh(second["refresh_token"])).json
    assert refusal(await app.refresh(first["refresh_token"])) == INVALID_GRANT
    assert refusal(await app.refresh(third["refresh_token"])) == INVALID_GRANT
    assert [await app.status(tokens["access_token"]) for tokens in (first, second, third)] == [401] * 3
    assert await app.status(other["access_token"]) == 200
    assert (await app.refresh(other["refresh_token"])).status == 200


async def test_a_refresh_token_at_once(app: App) -> None:
    token = (await app.tokens())["refresh_token"]
    answers = await asyncio.gather(*(app.refresh(token) for _ in range(6)))
    winners = [answer.json for answer in answers if answer.status == 200]
    assert len(winners) <= 1
    assert [await app.status(tokens["access_token"]) for tokens in winners] == [401] * len(winners)


async def test_mix_of_clients_with_a_refresh_token(app: App) -> None:
    tokens = await app.tokens()
    assert refusal(await app.refresh(tokens["refresh_token"], client_id="other")) == INVALID_GRANT
    assert await app.status(tokens["access_token"]) == 401


async def test_a_refresh_token_of_a_device_that_is_kept_out(app: App) -> None:
    token = (await app.tokens())["refresh_token"]
    await app.shop.licenses.deactivate(app.license_id)
    assert refusal(await app.refresh(token)) == INVALID_GRANT
    await app.shop.licenses.activate(app.license_id)
    assert (await app.refresh(token)).status == 200


async def test_an_unused_refresh_token_expires(app: App) -> None:
    token = (await app.tokens())["refresh_token"]
    await move(app, 30 * DAY - SECOND)
    token = (await app.refresh(token)).json["refresh_token"]
    await move(app, 30 * DAY - SECOND)
    token = (await app.refresh(token)).json["refresh_token"]
    await move(app, 30 * DAY)
    assert refusal(await app.refresh(token)) == INVALID_GRANT


# Access tokens


async def test_expired_access_token(app: App) -> None:
    token = (await app.tokens())["access_token"]
    await move(app, HOUR - SECOND)
    assert await app.status(token) == 200
    await move(app, SECOND)
    assert await app.status(token) == 401


async def test_tampered_access_token(app: App) -> None:
    """Any letter of it, and any claim."""
    token = (await app.tokens())["access_token"]
    head, claims, signature = token.split(".")
    for name, value in {"sub": "somebody", "exp": 2**40, "aud": "x", "grant": "x", "client_id": "other"}.items():
        changed = segment(part(token, 1) | {name: value})
        assert await app.status(f"{head}.{changed}.{signature}") == 401
    for place in range(0, len(token), 7):
        letter = "A" if token[place] != "A" else "B"
        assert await app.status(token[:place] + letter + token[place + 1 :]) == 401
    for other in (f"{head}.{claims}.", f"{head}.{claims}", f".{claims}.{signature}", f"{token}.", f"{token}=", ".."):
        assert await app.status(other) == 401
    assert await app.status(token) == 200


async def test_access_token_without_a_signature(app: App) -> None:
    """The algorithm none, and HMAC with the public key as its secret."""
    from joserfc import jwt
    from joserfc.jwk import OctKey

    token = (await app.tokens())["access_token"]
    head, claims = part(token, 0), token.split(".")[1]
    for algorithm in ("none", "None", "NONE", "HS256", "", None, 0, ["ES256"], {"ES256": 1}):
        for signature in ("", token.split(".")[2]):
            assert await app.status(f"{segment(head | {'alg': algorithm})}.{claims}.{signature}") == 401
    public = (await app.shop.server.get("/.well-known/jwks.json")).json["keys"][0]
    confused = jwt.encode(head | {"alg": "HS256"}, part(token, 1), OctKey.import_key(public["x"]), ["HS256"])
    assert await app.status(confused) == 401


async def test_access_token_with_a_key_of_ones_own(app: App) -> None:
    """One that is sent along, or said to be elsewhere, is not looked at."""
    from joserfc import jwt
    from joserfc.jwk import ECKey

    token = (await app.tokens())["access_token"]
    head, claims = part(token, 0), part(token, 1)
    own = ECKey.generate_key("P-256")
    for more in (
        {},
        {"jwk": own.as_dict(private=False)},
        {"jku": "https://evil.example.com/jwks.json"},
        {"kid": "x"},
        {"kid": "../../x"},
    ):
        assert await app.status(jwt.encode(head | more, claims, own, ["ES256"])) == 401


@settings(max_examples=40)
@given(
    head=st.one_of(
        st.recursive(
            st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
        ),
        st.fixed_dictionaries({"alg": st.sampled_from(["ES256", "none"]), "typ": st.just("at+jwt"), "kid": st.text()}),
    ),
    rest=st.text(st.sampled_from("abcXYZ019-_."), max_size=60),
)
def test_what_is_no_token_is_no_token(head: Any, rest: str) -> None:
    """Whatever stands where the head should be."""
    from homeport.server.clock import Clock
    from homeport.storage import make_storage

    async def verify() -> object:
        async with make_storage("memory:") as storage:
            await storage.declare(SECRETS)
            keys = SigningKeys(storage, Clock())
            return await keys.verify(f"{segment(head)}.{rest}", "https://sync.example.com")

    assert asyncio.run(verify()) is None


def test_a_head_without_an_end() -> None:
    """JSON of many levels is refused, not followed."""
    from homeport.server.apis.metering.oauth.signing import _key_id

    for text in ("[" * 6000, '{"a":' * 1200, '{"kid": "\\ud800"}', "\ud800", "é"):
        assert _key_id(base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode()) is None
        assert _key_id(text) is None


async def test_access_token_of_a_device_that_is_kept_out(app: App) -> None:
    """At once, and let in again."""
    token = (await app.tokens())["access_token"]
    await app.shop.licenses.deactivate(app.license_id)
    answer = await app.shop.balance(token)
    assert (answer.status, answer.json) == (403, {"success": False, "error": "Device not active"})
    await app.shop.licenses.activate(app.license_id)
    assert await app.status(token) == 200


@on_memory
async def test_access_token_of_another_server(serve: Serve) -> None:
    """The same store under another name: neither its issuer nor its audience."""
    app = await open_app(serve)
    token = (await app.tokens())["access_token"]
    other = await open_app(serve, {"server.public_url": "https://sync.example.com"})
    assert await other.status(token) == 401


@on_memory
async def test_an_access_token_counts_as_its_license(serve: Serve) -> None:
    app = await open_app(serve, {"apis.metering.rate_limit": "10/minute"})
    token = (await app.tokens())["access_token"]  # the page was one
    assert [await app.status(token) for _ in range(5)] == [200] * 5
    assert [(await app.shop.balance(app.key)).status for _ in range(5)] == [200] * 4 + [429]
    assert await app.status(token) == 429


# Signing keys


async def test_key_rotation(app: App) -> None:
    """A token in use stays good while the key is replaced, also for a server that did not do it."""
    await move(app, 90 * DAY - 30 * MINUTE)
    tokens = await app.tokens()
    old = part(tokens["access_token"], 0)["kid"]
    other = SigningKeys(app.shop.server.storage, app.shop.server.clock)
    await move(app, 30 * MINUTE + SECOND)
    await other.rotate()
    assert await app.status(tokens["access_token"]) == 200
    issuer = app.shop.server.url
    assert await other.verify(tokens["access_token"], issuer) is not None
    keys = (await app.shop.server.get("/.well-known/jwks.json")).json["keys"]
    assert [key["kid"] == old for key in keys] == [False, True]
    fresh = (await app.refresh(tokens["refresh_token"])).json["access_token"]
    assert part(fresh, 0)["kid"] == keys[0]["kid"]
    assert await app.status(fresh) == 200
    await move(app, DAY)
    await other.rotate()
    assert [key["kid"] for key in (await app.shop.server.get("/.well-known/jwks.json")).json["keys"]] == [
        keys[0]["kid"]
    ]


async def test_a_key_that_is_gone(app: App) -> None:
    """What was signed with a key that is gone is refused, whatever else is right about it."""
    token = (await app.tokens())["access_token"]
    claims = part(token, 1)
    keys = SigningKeys(app.shop.server.storage, app.shop.server.clock)
    assert len(await keys.public()) == 1
    await move(app, 90 * DAY)
    await SigningKeys(app.shop.server.storage, app.shop.server.clock).rotate()
    late = await keys.sign(claims | {"exp": 2**40})
    await move(app, DAY)
    await SigningKeys(app.shop.server.storage, app.shop.server.clock).rotate()
    other = SigningKeys(app.shop.server.storage, app.shop.server.clock)
    assert await other.verify(late, app.shop.server.url) is None


async def test_servers_that_begin_at_once_have_one_key(serve: Serve) -> None:
    app = await open_app(serve, {"apis.metering.oauth.clients": []})
    storage, clock = app.shop.server.storage, app.shop.server.clock
    keys = [SigningKeys(storage, clock) for _ in range(6)]
    await asyncio.gather(*(each.rotate() for each in keys))
    ids = {key["kid"] for each in keys for key in await each.public()}
    assert len(ids) == 1
    assert await keys[0].verify(await keys[1].sign({"iss": "x", "aud": "x", "exp": 2**40}), "x")


@on_memory
async def test_without_clients_there_is_no_key(serve: Serve) -> None:
    app = await open_app(serve, {"apis.metering.oauth.clients": []})
    assert (await app.shop.server.get("/.well-known/jwks.json")).json == {"keys": []}
    assert is_page(await app.authorize(), 400, "not registered with this server")


def test_a_reset_test_server_has_a_key_of_its_own() -> None:
    """As one that has just started."""
    config = load_config(environ={}, overrides={"storage.url": "memory:", "log.level": "error", **CLIENTS})
    with running(config) as server:

        def keys() -> list[str]:
            with urlopen(f"{server.url}/.well-known/jwks.json") as answer:
                return [key["kid"] for key in json.load(answer)["keys"]]

        server.reset()
        first = keys()
        server.reset()
        assert (len(first), len(keys()), first == keys()) == (1, 1, False)


# The token endpoint


@on_memory
@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        pytest.param({}, (400, "invalid_request"), id="nothing"),
        pytest.param({"grant_type": "password"}, (400, "invalid_request"), id="no client"),
        pytest.param({"grant_type": "password", "client_id": "x"}, (401, "invalid_client"), id="unknown client"),
        pytest.param(
            {"grant_type": "password", "client_id": "desktop"}, (400, "unsupported_grant_type"), id="password"
        ),
        pytest.param({"grant_type": "refresh_token", "client_id": "desktop"}, (400, "invalid_request"), id="no token"),
        pytest.param(
            {"grant_type": "refresh_token", "client_id": "desktop", "refresh_token": "x"},
            INVALID_GRANT,
            id="no such token",
        ),
        pytest.param(
            {
                "grant_type": "refresh_token",
                "client_id": "desktop",
                "refresh_token": "é\udc00".encode("utf-8", "replace"),
            },
            INVALID_GRANT,
            id="not ASCII",
        ),
        pytest.param(b"grant_type=a&grant_type=a", (400, "invalid_request"), id="duplicate parameters"),
        pytest.param(b"grant_type=%ff", (400, "invalid_request"), id="not UTF-8"),
        pytest.param(b"\xff", (400, "invalid_request"), id="bytes"),
        pytest.param(b"&".join(b"a%d=" % n for n in range(101)), (400, "invalid_request"), id="a hundred fields"),
        pytest.param(b"x" * (64 << 10) + b"x", (413, "invalid_request"), id="too large"),
    ],
)
async def test_errors_of_the_token_endpoint(app: App, fields: Any, refused: tuple[int, str]) -> None:
    answer = await app.post("token", fields)
    assert refusal(answer) == refused
    assert ("WWW-Authenticate" in answer.headers) == (refused[0] == 401)


@on_memory
@pytest.mark.parametrize("endpoint", ["token", "revoke"])
async def test_other_errors_have_the_same_shape(app: App, endpoint: str) -> None:
    assert refusal(await app.post(endpoint, b"{}", headers={"Content-Type": "application/json"})) == (
        415,
        "invalid_request",
    )
    answer = await app.shop.server.get(f"/oauth2/{endpoint}")
    assert refusal(answer) == (405, "invalid_request")
    assert answer.headers["Allow"] == "OPTIONS, POST"


@on_memory
async def test_five_token_requests_a_minute(serve: Serve) -> None:
    """Of an address, good and bad ones alike."""
    app = await open_app(serve, PROXIED)
    token = (await app.tokens())["refresh_token"]
    fields = {"grant_type": "refresh_token", "client_id": "desktop"}

    async def refresh(token: str, address: dict[str, str] = ELSEWHERE) -> Answer:
        return await app.post("token", fields | {"refresh_token": token}, headers=address)

    for n in range(5):
        answer = await refresh(token if n % 2 else "x")
        assert answer.status == (200 if n % 2 else 400)
        token = answer.json.get("refresh_token", token)
    answer = await refresh(token)
    assert refusal(answer) == (429, "temporarily_unavailable")
    assert answer.headers["Retry-After"] == "60"
    assert (await refresh(token, {"X-Forwarded-For": "203.0.113.8"})).status == 200


# Revocation


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
async def test_revocation(app: App, kind: str) -> None:
    tokens, other = await app.tokens(), await app.tokens()
    answer = await app.revoke(tokens[kind])
    assert (answer.status, answer.content) == (200, b"")
    assert await app.status(tokens["access_token"]) == 401
    assert refusal(await app.refresh(tokens["refresh_token"])) == INVALID_GRANT
    assert (await app.revoke(tokens[kind])).status == 200
    assert await app.status(other["access_token"]) == 200


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
async def test_revocation_by_another_client(app: App, kind: str) -> None:
    tokens = await app.tokens()
    assert refusal(await app.revoke(tokens[kind], "other")) == INVALID_GRANT
    assert await app.status(tokens["access_token"]) == 200


@on_memory
@pytest.mark.parametrize("token", ["x", "a.b.c", "ü", "x" * 64])
async def test_revocation_of_what_is_none(app: App, token: str) -> None:
    assert (await app.revoke(token)).status == 200
    assert refusal(await app.post("revoke", {"client_id": "desktop"})) == (400, "invalid_request")
    assert refusal(await app.post("revoke", {"token": token, "client_id": "x"})) == (401, "invalid_client")


# What is kept


async def test_what_is_kept_opens_nothing(app: App, log: Log) -> None:
    """No code, no token and no key is in the store's records of grants, or in the log."""
    code = await app.code()
    tokens = (await app.redeem(code)).json
    fresh = (await app.refresh(tokens["refresh_token"])).json
    secret = [app.key, code, *(tokens[name] for name in ("access_token", "refresh_token")), fresh["refresh_token"]]
    kept = repr((await app.shop.server.storage.find(Query(GRANTS))).records) + log.stream.getvalue()
    assert not [text for text in secret if text in kept or text[:32] in kept or text[-32:] in kept]


async def test_of_a_license_so_many_grants_are_kept(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond, codes go first, then what was not used for the longest time. Other licenses' stay."""
    monkeypatch.setattr(grants, "MAX_GRANTS", 3)
    _, key = await app.shop.license()
    others = sent_back(await app.log_in(await app.authorize(), key))["code"]
    first, second = [(await app.tokens())["refresh_token"] for _ in range(2)]
    app.shop.server.clock.advance(1)
    first = (await app.refresh(first)).json["refresh_token"]
    codes = [await app.code() for _ in range(2)]
    assert refusal(await app.redeem(codes[0])) == INVALID_GRANT
    assert (await app.redeem(codes[1])).status == 200
    code = await app.code()
    assert refusal(await app.refresh(second)) == INVALID_GRANT
    for answer in (await app.redeem(code), await app.redeem(others), await app.refresh(first)):
        assert answer.status == 200


async def test_one_that_is_used_while_another_begins_stays(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "MAX_GRANTS", 2)
    tokens = []
    for _ in range(2):
        tokens.append((await app.tokens())["refresh_token"])
        app.shop.server.clock.advance(1)
    oldest, later = tokens
    storage = app.shop.server.storage
    find, used = storage.find, list[Answer]()

    async def find_and_use(query: Query) -> Page:
        page = await find(query)
        if query.collection is GRANTS and not used:
            used.append(await app.refresh(oldest))
        return page

    monkeypatch.setattr(storage, "find", find_and_use)
    await app.code()
    assert (await app.refresh(used[0].json["refresh_token"])).status == 200
    assert refusal(await app.refresh(later)) == INVALID_GRANT


async def test_those_who_log_in_at_once_are_counted(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "MAX_GRANTS", 3)
    await asyncio.gather(*[app.code() for _ in range(8)])
    assert await app.shop.server.storage.count(Query(GRANTS)) == 3


async def test_what_has_expired_is_forgotten(app: App) -> None:
    """Codes that nobody redeemed, and grants that nobody uses."""

    async def grants() -> int:
        return await app.shop.server.storage.count(Query(GRANTS))

    tokens = await app.tokens()
    await app.code()
    assert await grants() == 2
    await move(app, HOUR)
    async with asyncio.timeout(30):
        while await grants() > 1:
            await asyncio.sleep(0.005)
    assert (await app.refresh(tokens["refresh_token"])).status == 200
    await move(app, 31 * DAY)
    async with asyncio.timeout(30):
        while await grants():
            await asyncio.sleep(0.005)
