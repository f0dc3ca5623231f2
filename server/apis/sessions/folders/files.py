"""Ticket files on disk: reading, writing, making and removing them. All of it blocks, and is for threads.

Below the tickets folder no link is followed, and none that leads out of the project on the way there: every folder is
opened relative to the one that holds it, so that nobody can put a link between the check and the use.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from .....storage import disk
from ....errors import ApiError, InsufficientStorage, ServiceUnavailable
from ....ids import new_id

MAX_CONTENT = 2**20
"""Bytes of a file that are shown; a larger one is not written."""
_RECENT = 100_000_000
"""Nanoseconds in which a file may change again without another time of change."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe is opened at once, and found to be one
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Missing(Exception):
    """There is no such file or folder, or it is none that may be followed."""


class Folder(NamedTuple):
    """A project's tickets folder. ``repo``: an absolute path; ``tickets``: relative to it."""

    repo: str
    tickets: str

    def below(self, file_path: str) -> str:
        """The path below the tickets folder of a file that clients know by its path in the repository.

        Raises `Missing` for one that is elsewhere."""
        try:
            return str(Path(file_path).relative_to(self.tickets))
        except ValueError:
            raise Missing from None

    def shown(self, path: str) -> str:
        """The path in the repository of a file below the tickets folder."""
        return os.path.normpath(os.path.join(self.tickets, path))  # noqa: PTH118  # a tenth of what a Path costs


class Content(NamedTuple):
    """What is in a file: the first `MAX_CONTENT` bytes. ``size``: in all."""

    data: bytes
    size: int

    @property
    def text(self) -> str:
        """Bytes that are no UTF-8 are replaced, and so is what a cut left of a character."""
        return self.data.decode(errors="replace")

    @property
    def cut(self) -> bool:
        return self.size > len(self.data)

    @property
    def etag(self) -> str:
        return f'"{sha256(b"%d " % self.size + self.data).hexdigest()[:32]}"'


def contained(repo: str, relative: str) -> str | None:
    """The real path of a relative one, which need not exist; None where it leaves the repository."""
    path = os.path.realpath(os.path.join(repo, relative))  # noqa: PTH118  # pathlib drops what ".." would show
    root = os.path.realpath(repo)
    return path if path == root or path.startswith(root.rstrip("/") + "/") else None


@contextmanager
def opened(folder: Folder, *, make: bool = False) -> Iterator[int]:
    """A descriptor of the tickets folder; ``make``: it is made where there is none. Raises `Missing`."""
    real = contained(folder.repo, folder.tickets)
    if real is None:
        raise Missing
    root = os.path.realpath(folder.repo)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with descended(descriptor, Path(real).relative_to(root), make) as at:
        yield at


@contextmanager
def descended(descriptor: int, steps: Path, make: bool = False) -> Iterator[int]:
    """The folder that some steps below another one lead to. The descriptor of the latter is closed in the end."""
    try:
        for step in steps.parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(step, dir_fd=descriptor)
            inner = os.open(step, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _parent(folder: Folder, path: str) -> Iterator[tuple[int, str]]:
    """The folder that holds a file, and the file's name in it."""
    steps = Path(path)
    with opened(folder) as root, descended(os.dup(root), steps.parent) as at:
        yield at, steps.name


@contextmanager
def refusing(doing: str) -> Iterator[None]:
    """Raises an OSError of the block as what clients are told of it; `Missing` where there is no file."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InsufficientStorage("The disk that holds the ticket's file is full") from error
        if error.errno in _REFUSED:
            raise ApiError(f"The ticket's file cannot be {doing}: {os.strerror(error.errno)}", status=409) from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            raise Missing from error
        raise ServiceUnavailable(f"The ticket's file cannot be {doing} now") from error


def stamp(status: os.stat_result) -> str:
    """What a file's content is known by. With a "?" at its end, the file may yet change without another one."""
    recent = time.time_ns() - status.st_ctime_ns < _RECENT
    return f"{status.st_ctime_ns:x}.{status.st_ino:x}.{status.st_size:x}{'?' if recent else ''}"


def read(folder: Folder, path: str) -> Content:
    """Raises `Missing`, and `ApiError` 409 or 503 for what cannot be read."""
    with refusing("read"), _parent(folder, path) as (at, name):
        return _read(at, name, MAX_CONTENT)[0]


def read_beginnings(folder: Folder, paths: Iterable[str], size: int) -> Iterator[tuple[str, bytes]]:
    """The first bytes of some files; what cannot be read is left out. Raises `Missing` and OSError."""
    with opened(folder) as root:
        for path in paths:
            with suppress(Missing, OSError), descended(os.dup(root), Path(path).parent) as at:
                yield path, _read(at, Path(path).name, size)[0].data


def _read(at: int, name: str, size: int) -> tuple[Content, os.stat_result]:
    descriptor = os.open(name, _READ, dir_fd=at)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Missing
        data = bytearray()
        while len(data) < size and (part := os.read(descriptor, size - len(data))):
            data += part
        return Content(bytes(data), max(status.st_size, len(data))), status
    finally:
        os.close(descriptor)


def write(folder: Folder, path: str, change: Callable[[Content], bytes]) -> tuple[Content, str]:
    """Replaces a file by what ``change`` makes of it: whoever reads it finds the one or the other. Owner and mode stay.

    Returns the new content and its `stamp`. Raises what ``change`` raises, `Missing`, and `ApiError` 409, 503 or 507;
    then nothing has changed.
    """
    with refusing("written"), _parent(folder, path) as (at, name):
        present, status = _read(at, name, MAX_CONTENT)
        data = change(present)
        with _new_file(at, data, status) as temporary:
            os.rename(temporary, name, src_dir_fd=at, dst_dir_fd=at)
        os.fsync(at)
        return Content(data, len(data)), stamp(os.stat(name, dir_fd=at, follow_symlinks=False))


def create(folder: Folder, name: str, data: bytes) -> bool:
    """Makes a file, and the tickets folder if there is none; False where there is a file of that name."""
    with refusing("written"), opened(folder, make=True) as at:
        with _new_file(at, data) as temporary:
            try:
                os.link(temporary, name, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)
            except FileExistsError:
                return False
        os.fsync(at)
        return True


@contextmanager
def _new_file(at: int, data: bytes, like: os.stat_result | None = None) -> Iterator[str]:
    """A durable file under a name that is no ticket's, gone afterwards unless renamed."""
    name = f".homeport-{new_id()}"
    descriptor = os.open(name, _MAKE, 0o666 if like is None else 0o600, dir_fd=at)
    try:
        try:
            disk.write(descriptor, data)
            if like is not None:
                with suppress(PermissionError):  # only root gives files away
                    os.fchown(descriptor, like.st_uid, like.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
        yield name
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=at)


def remove(folder: Folder, path: str) -> None:
    """Removes a file; one that is not there is no error."""
    with suppress(Missing), refusing("removed"), _parent(folder, path) as (at, name):
        os.unlink(name, dir_fd=at)
        os.fsync(at)
