"""OAuth 2.0 for apps that should not hold a license key (contracts/metering.md, "OAuth 2.0").

Authorization code with PKCE for public clients (RFC 6749, 7636, 8252, 9700): `authorizing` asks people for their
license key, `exchanging` gives apps access tokens for it, `metadata` describes both. A `Grant` is what came of one such
question; `signing` has the keys of the access tokens.
"""
