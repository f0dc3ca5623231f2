"""What `homeport check` says about sessions."""

import shutil

import pytest

from homeport.server.cli.credentials import credentials
from homeport.server.config import load_config

from ..apis.apns import KEY_ID, TEAM_ID, TOPIC, p8

KEY, _ = p8()
APNS = {
    "apis.sessions.apns.key": KEY,
    "apis.sessions.apns.key_id": KEY_ID,
    "apis.sessions.apns.team_id": TEAM_ID,
    "apis.sessions.apns.topic": TOPIC,
}
KEYED = {"apis.sessions.api_key": "correct horse battery staple"}
EXPOSED = {"server.host": "0.0.0.0"}
NO_SIGNING_KEY = "on; no push notification can be sent: apis.sessions.apns.key is not the text of a .p8 file of Apple's"


@pytest.mark.parametrize(
    ("settings", "level", "message"),
    [
        pytest.param({}, "ok", "on; from this machine alone; push notifications are off", id="plain"),
        pytest.param(KEYED, "ok", "on; with API_KEY; push notifications are off", id="key"),
        pytest.param(APNS, "ok", "on; from this machine alone; push notifications are on", id="push"),
        pytest.param(EXPOSED | KEYED, "ok", "on; with API_KEY; push notifications are off", id="exposed with a key"),
        pytest.param(
            EXPOSED,
            "fatal",
            "API_KEY is not set on an exposed server, and sessions start programs on this machine",
            id="exposed",
        ),
        pytest.param(
            {"apis.sessions.key_on_loopback": True},
            "warning",
            "on; nobody may call: apis.sessions.key_on_loopback asks for API_KEY, which is not set",
            id="closed",
        ),
        pytest.param(
            {"apis.sessions.api_key": "x" * 15},
            "warning",
            "on; API_KEY is shorter than 16 characters: it could be guessed",
            id="short key",
        ),
        pytest.param(APNS | {"apis.sessions.apns.key": "key"}, "warning", NO_SIGNING_KEY, id="no signing key"),
        pytest.param(
            APNS | {"apis.sessions.apns.key": KEY.replace("PRIVATE", "PUBLIC")}, "warning", NO_SIGNING_KEY, id="public"
        ),
    ],
)
def test_sessions(monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], level: str, message: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    found = {one.subject: one for one in credentials(load_config(environ={}, overrides=settings))}["sessions"]
    assert (found.level, found.message) == (level, message)
    assert found.cure or level == "ok"


def test_without_tmux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = {one.subject: one for one in credentials(load_config(environ={}))}["sessions"]
    assert (found.level, found.message) == ("warning", "on; tmux is not installed: no session can start")
