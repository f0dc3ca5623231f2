"""The API object, to which the modules of this package add their operations."""

from __future__ import annotations

from ....storage import Collection
from ...operation import Api

MARKS = Collection("collection_marks")
"""When the store was at which version: the ids are times, and the version of a mark is the store's then."""

api = Api("collections", title="Anybody's documents, checked against JSON Schema files.", collections=(MARKS,))
