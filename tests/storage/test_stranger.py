"""A back end that Homeport does not know: it passes the contract, and a storage URL names it."""

from pathlib import Path

import pytest

from homeport.storage import Storage, make_storage
from homeport.storage.testing import StorageContract

from .stranger.dictstore import DictStorage, Shelf


class TestDictStorage(StorageContract):
    @pytest.fixture(autouse=True)
    def _shelves(self) -> None:
        self.shelves: dict[Path, Shelf] = {}

    def make(self, path: Path) -> Storage:
        return DictStorage(self.shelves.setdefault(path, Shelf()))


def test_a_storage_url_names_it() -> None:
    assert isinstance(make_storage(f"{DictStorage.__module__}:on_a_new_shelf"), DictStorage)
