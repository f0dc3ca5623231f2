"""A device asks whether its license key is good, and is bound to it (contracts/metering.md, "Who")."""

from __future__ import annotations

from typing import Any

from ...errors import Forbidden, NotFound
from ...ratelimit import DEFAULT_LIMIT, per_document
from ...request import ApiRequest
from .access import LIMIT, guesser
from .api import api
from .ledger import LEDGER
from .licenses import LICENSING

_STORAGE_LIMIT_MB = 50

_PER_KEY = per_document(
    LIMIT,
    lambda config: config.apis.metering.rate_limit,
    lambda request: request.app[LICENSING].hash(request.document["license_key"]),
)


@api.post(
    "/api/license/validate",
    body="metering#/$defs/ValidateRequest",
    returns={200: "metering#/$defs/ValidateResponse"},
    errors=(404,),
    auth=guesser,
    limits=(DEFAULT_LIMIT, _PER_KEY),
)
async def validate_license(request: ApiRequest) -> dict[str, Any]:
    """Whose a license key is. The first machine that asks is bound to it."""
    licenses = request.app[LICENSING]
    fingerprint = request.document["device_fingerprint"].lower()
    license_ = await licenses.find(request.document["license_key"])
    if license_ is not None and license_.is_active and license_.device_fingerprint is None:
        license_ = await licenses.bind(license_.id, fingerprint)
    if license_ is None:
        request.guess = True
        raise NotFound("Unknown license key")
    request.username = license_.user_id
    if not license_.is_active:
        raise Forbidden("Device not active")
    if license_.device_fingerprint != fingerprint:
        raise Forbidden("License is bound to another device")
    profile = await request.app[LEDGER].profile(license_.user_id)
    return {
        "valid": True,
        "user_id": license_.user_id,
        "device_id": license_.device_id,
        "tier": profile.subscription_tier,
        "storage_limit_mb": _STORAGE_LIMIT_MB,
        "user_name": profile.email.partition("@")[0],
        "message": f"License is valid for {license_.device_name}",
    }
