"""The API object, to which the modules of this package add their operations."""

from __future__ import annotations

from ...operation import Api

api = Api("collections")
