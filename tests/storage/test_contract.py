"""Homeport's own back ends pass the contract."""

from pathlib import Path

import pytest

from homeport.storage import Storage
from homeport.storage.testing import StorageContract

from .conftest import BackEnd


class TestContract(StorageContract):
    @pytest.fixture(autouse=True)
    def _of(self, back_end: BackEnd) -> None:
        self.back_end = back_end
        self.durable = back_end.durable  # type: ignore[misc] - each test has an object of its own
        self.layout = back_end.layout  # type: ignore[misc] - as above

    def make(self, path: Path) -> Storage:
        return self.back_end.make(path)
