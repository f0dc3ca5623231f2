"""Disks that fail. They stand for `os` in `homeport.storage.disk`, the one module that changes the files of a store."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from homeport.storage import disk

CHANGES = frozenset({"open", "write", "fsync", "ftruncate", "replace", "unlink", "mkdir"})


class Disk:
    """The real one, save that calls fail as ``fails`` says: the number of a call that changes something -> errno.

    A write that fails has written half of its data.
    """

    def __init__(self, fails: Callable[[int], int | None] = lambda call: None) -> None:
        self.calls: list[str] = []
        self.fails = fails
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if name not in CHANGES:
            return getattr(os, name)
        return lambda *args: self._call(name, args)

    def _call(self, name: str, args: tuple[Any, ...]) -> Any:
        with self._lock:
            self.calls.append(name)
            code = self.fails(len(self.calls))
            if code is None:
                return self._do(name, args)
            if name == "write":
                descriptor, data = args
                self._do(name, (descriptor, bytes(data[: len(data) // 2])))
            raise OSError(code, os.strerror(code))

    def _do(self, name: str, args: tuple[Any, ...]) -> Any:
        return getattr(os, name)(*args)


def once(at: int, code: int) -> Callable[[int], int | None]:
    """One call fails."""
    return lambda call: code if call == at else None


def dead(at: int) -> Callable[[int], int | None]:
    """From one call on all fail, as if the process had been killed there: what was done stays, nothing follows."""
    return lambda call: errno.EIO if call >= at else None


class Pessimist(Random):
    """By whose choice only that survives which must."""

    def choice(self, seq: Any) -> Any:
        return seq[0]


class PowerLoss(Disk):
    """A disk of which only that survives a loss of power which was synced; of the rest, chance decides.

    A file's content survives an fsync of the file. Of what was done to a folder since its last fsync the first part
    survives, as on any file system with a journal.
    """

    def __init__(self, fails: Callable[[int], int | None] = lambda call: None) -> None:
        super().__init__(fails)
        self._contents: dict[int, bytes] = {}
        self._names: dict[Path, list[dict[str, int]]] = {}
        """Of each folder, how it was when it was synced, and after each change since."""
        self._kept: list[int] = []  # descriptors that keep the numbers of inodes from being used again

    def _do(self, name: str, args: tuple[Any, ...]) -> Any:
        result = super()._do(name, args)
        match name:
            case "open":
                self._kept.append(os.dup(result))
                self._changed(args[0])
            case "mkdir" | "unlink" | "replace":
                self._changed(args[0])
            case "fsync":
                self._synced(Path(f"/proc/self/fd/{args[0]}"))
        return result

    def _changed(self, path: Path) -> None:
        self._names.setdefault(path.parent, [{}]).append(_inodes(path.parent))

    def _synced(self, path: Path) -> None:
        if path.is_dir():
            self._names[path.resolve()] = [_inodes(path.resolve())]
        else:
            self._contents[path.stat().st_ino] = path.read_bytes()

    def restore(self, path: Path, by: Path, random: Random) -> None:
        """Makes a folder as another one may be found after the power came back."""
        by.mkdir()
        for name, inode in random.choice(self._names.get(path, [{}])).items():
            if (path / name).is_dir():
                self.restore(path / name, by / name, random)
            else:
                (by / name).write_bytes(self._content(inode, path, random))

    def _content(self, inode: int, folder: Path, random: Random) -> bytes:
        synced = self._contents.get(inode, b"")
        now = next((path.read_bytes() for path in folder.iterdir() if path.stat().st_ino == inode), synced)
        if not now.startswith(synced):
            return random.choice([synced, now])
        end = now[len(synced) :]  # may be there, in part, or as zeros
        return synced + random.choice([b"", end[: random.randint(0, len(end))], bytes(len(end)), end])

    def forget(self) -> None:
        for descriptor in self._kept:
            os.close(descriptor)


def _inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def use(monkeypatch: pytest.MonkeyPatch, failing: Disk) -> None:
    monkeypatch.setattr(disk, "os", failing)


def copy(folder: Path, to: Path) -> Path:
    """The files of a store that runs, as a kill at this moment would leave them."""
    return Path(shutil.copytree(folder, to))
