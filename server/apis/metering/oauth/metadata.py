"""What there is to know of the authorization server (RFC 8414), and its public keys (RFC 7517)."""

from __future__ import annotations

from typing import Any

from ....request import Answer, ApiRequest
from ..api import api
from .access_tokens import ACCESS_TOKENS

_KEYS_FRESH = {"Cache-Control": "public, max-age=300"}


@api.get(
    "/.well-known/oauth-authorization-server",
    returns={200: "metering#/$defs/ServerMetadata"},
    well_known=True,
)
async def server_metadata(request: ApiRequest) -> dict[str, Any]:
    """Where the endpoints are, and what they know."""
    base = request.base_url
    return {
        "issuer": base,
        "authorization_endpoint": f"{base}/oauth2/authorize",
        "token_endpoint": f"{base}/oauth2/token",
        "revocation_endpoint": f"{base}/oauth2/revoke",
        "jwks_uri": f"{base}/.well-known/jwks.json",
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none"],
        "revocation_endpoint_auth_methods_supported": ["none"],
        "authorization_response_iss_parameter_supported": True,
    }


@api.get("/.well-known/jwks.json", returns={200: "metering#/$defs/KeySet"})
async def key_set(request: ApiRequest) -> Answer:
    """The keys that access tokens may be signed with."""
    return Answer({"keys": await request.app[ACCESS_TOKENS].keys.public()}, headers=_KEYS_FRESH)
