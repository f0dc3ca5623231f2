"""The back ends: each test that asks for `back_end` runs with every one of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from homeport.storage import Storage, make_storage

pytest.register_assert_rewrite("homeport.storage.testing")


@dataclass(frozen=True)
class BackEnd:
    """``url``: the storage URL of a store at a path. ``often``: constants that make its checkpoints frequent."""

    name: str
    url: Callable[[Path], str]
    durable: bool = True
    often: Mapping[str, int] = field(default_factory=dict)

    def make(self, path: Path) -> Storage:
        return make_storage(self.url(path))


MEMORY = BackEnd("memory", lambda path: "memory:", durable=False)
FILE = BackEnd("file", lambda path: f"file:{path}", often={"homeport.storage.file.MIN_CHECKPOINT_BYTES": 64 << 10})
SQLITE = BackEnd(
    "sqlite",
    lambda path: f"sqlite:{path}.db",
    often={"homeport.storage.sqlite.PASSIVE_BYTES": 64 << 10, "homeport.storage.sqlite.TRUNCATE_BYTES": 512 << 10},
)
BACK_ENDS = [MEMORY, FILE, SQLITE]
DURABLE = [back_end for back_end in BACK_ENDS if back_end.durable]


def _name(back_end: BackEnd) -> str:
    return back_end.name


@pytest.fixture(params=BACK_ENDS, ids=_name)
def back_end(request: pytest.FixtureRequest) -> BackEnd:
    return cast("BackEnd", request.param)


@pytest.fixture(params=DURABLE, ids=_name)
def durable(request: pytest.FixtureRequest) -> BackEnd:
    return cast("BackEnd", request.param)


@pytest.fixture
def checkpoints_often(back_end: BackEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in back_end.often.items():
        monkeypatch.setattr(name, value)
