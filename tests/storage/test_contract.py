"""Homeport's own back ends pass the contract."""

from pathlib import Path

import pytest

from homeport.storage import Storage
from homeport.storage.testing import StorageContract
from homeport.storage.testing.changing import Changing
from homeport.storage.testing.committing import Committing
from homeport.storage.testing.keeping import Keeping
from homeport.storage.testing.loading import Loading
from homeport.storage.testing.opening import Opening

from .conftest import FILE, BackEnd


class TestContract(StorageContract):
    @pytest.fixture(autouse=True)
    def _of(self, back_end: BackEnd) -> None:
        self.back_end = back_end
        self.durable = back_end.durable  # type: ignore[misc]  # each test has an object of its own

    def make(self, path: Path) -> Storage:
        return self.back_end.make(path)


class TestOneFileARecord(Opening, Keeping, Committing, Changing, Loading):
    """The other layout, in what a layout can change: queries are answered from memory."""

    layout = "files"

    def make(self, path: Path) -> Storage:
        return FILE.make(path)
