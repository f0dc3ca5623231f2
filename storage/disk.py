"""The few calls by which the file back end changes a disk, and what the system says of it in the contract's words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import StorageFull, StorageUnavailable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BUFFER_BYTES = 1 << 20


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raises an OSError of the block as `StorageFull` or `StorageUnavailable`: "cannot ``doing``: …"."""
    try:
        yield
    except OSError as error:
        kind = StorageFull if error.errno in _FULL else StorageUnavailable
        raise kind(f"cannot {doing}: {error.strerror or error}") from error


def open_file(path: Path, flags: int) -> int:
    """A descriptor for a file that, if it is made, only its owner can read."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def write(descriptor: int, data: bytes | bytearray) -> None:
    """Writes all of it, however often that takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync(descriptor: int) -> None:
    os.fsync(descriptor)


def truncate(descriptor: int, size: int) -> None:
    os.ftruncate(descriptor, size)


def close(descriptor: int) -> None:
    # An error would tell of a write, and those that matter have been synced.
    with suppress(OSError):
        os.close(descriptor)


def replace(path: Path, by: Path) -> None:
    os.replace(by, path)  # noqa: PTH105 - one way to the disk, which tests can make fail


def remove(path: Path) -> None:
    """Removes a file; one that is not there is no error."""
    try:
        os.unlink(path)  # noqa: PTH108 - as above
    except FileNotFoundError:
        return


def sync_folder(path: Path) -> None:
    """Makes durable which files a folder holds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        close(descriptor)


def make_folder(path: Path) -> None:
    """A folder that only its owner can enter, and those above it, unless they are there."""
    if not path.parent.exists():
        make_folder(path.parent)
    try:
        os.mkdir(path, 0o700)  # noqa: PTH102 - as above
    except FileExistsError:
        return
    sync_folder(path.parent)


class NewFile:
    """A file that is written from its beginning, with a buffer, and fsynced when it is done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._buffer = bytearray()
        self._descriptor: int | None = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def write(self, data: bytes) -> None:
        self.size += len(data)
        self._buffer += data
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()

    def done(self) -> None:
        """Makes what was written durable, and closes the file. That its name is so too, `sync_folder` sees to."""
        assert self._descriptor is not None
        self._flush()
        sync(self._descriptor)
        self.close()

    def close(self) -> None:
        """Closes the file, done or not; closing it twice is no error."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            close(descriptor)

    def _flush(self) -> None:
        assert self._descriptor is not None
        write(self._descriptor, self._buffer)
        self._buffer.clear()
