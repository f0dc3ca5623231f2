"""Which ticket files a folder holds. Reading it blocks, and is for threads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from .....storage.records import is_text
from .files import Folder, Missing, contained, opened, read_beginnings, stamp
from .headings import WINDOW, title_of

MAX_TICKETS = 20_000
"""Files of a folder that are tickets; what comes after them in order of path is counted as an error."""
_MAX_ENTRIES = 200_000
_MAX_DEPTH = 32
_TICKET = re.compile(r"([A-Z]+)-[0-9]+")


class Found(NamedTuple):
    """A ticket file. ``path``: below the tickets folder. ``stamp``: as `files.stamp` says."""

    path: str
    external_id: str
    prefix: str
    stamp: str


class Scan(NamedTuple):
    """What a folder holds. ``files``: in order of path. ``folders``: the real paths of all that were read or, where
    there is no tickets folder, of the one in which it, or what is to hold it, would be. ``unread``: folders, below the
    tickets folder, that could not be. ``errors``: how much could not be read or is no file, links among it."""

    files: tuple[Found, ...]
    folders: tuple[str, ...]
    unread: tuple[str, ...]
    errors: int

    @property
    def fingerprint(self) -> int | None:
        """What the scan is known by; None where a file may have changed without another stamp."""
        if any(found.stamp.endswith("?") for found in self.files):
            return None
        return hash((self.files, self.unread, self.errors))


def external_id(name: str) -> tuple[str, str] | None:
    """A ticket's id and prefix by the name of its file; None for the name of something else."""
    match = _TICKET.match(name)
    return (match[0], match[1]) if match and name.endswith(".md") else None


def scan(folder: Folder) -> Scan:
    """Reads a tickets folder and all below it, without what is hidden. There may be none. Raises `Missing` where the
    repository is not there or the folder is outside of it, and OSError where either cannot be read."""
    root = contained(folder.repo, folder.tickets) or ""
    scanner = _Scanner(root)
    try:
        with opened(folder) as at:
            scanner.read(at, PurePosixPath())
    except (FileNotFoundError, NotADirectoryError):
        if not os.path.isdir(folder.repo):  # noqa: PTH112  # a str
            raise Missing from None
        scanner.folders.append(next(str(path) for path in PurePosixPath(root).parents if os.path.isdir(path)))  # noqa: PTH112
    return Scan(tuple(sorted(scanner.files)), tuple(scanner.folders), tuple(scanner.unread), scanner.errors)


class _Scanner:
    def __init__(self, root: str) -> None:
        self._root = root
        self.files: list[Found] = []
        self.folders: list[str] = []
        self.unread: list[str] = []
        self.errors = 0
        self._entries = 0

    def read(self, at: int, path: PurePosixPath) -> None:
        """Reads the folder that a descriptor is of, and those in it."""
        self.folders.append(os.path.join(self._root, path))  # noqa: PTH118  # a str
        inner = []
        with os.scandir(at) as entries:
            for entry in entries:
                self._entries += 1
                if self._entries > _MAX_ENTRIES:
                    raise OSError(f"more than {_MAX_ENTRIES} files")
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    inner.append(entry.name)
                elif named := external_id(entry.name):
                    self._add(entry, path / entry.name, *named)
        for name in sorted(inner):
            self._enter(at, name, path / name)

    def _add(self, entry: os.DirEntry[str], path: PurePosixPath, id: str, prefix: str) -> None:
        if entry.is_file(follow_symlinks=False) and is_text(str(path)) and len(self.files) < MAX_TICKETS:
            try:
                self.files.append(Found(str(path), id, prefix, stamp(entry.stat(follow_symlinks=False))))
            except FileNotFoundError:  # it has just been removed
                return
        else:
            self.errors += 1

    def _enter(self, at: int, name: str, path: PurePosixPath) -> None:
        try:
            if len(path.parts) > _MAX_DEPTH:
                raise OSError("too deep")
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            try:
                self.read(descriptor, path)
            finally:
                os.close(descriptor)
        except OSError:
            self.errors += 1
            self.unread.append(str(path))


def read_titles(folder: Folder, paths: Iterable[str]) -> dict[str, str]:
    """The titles of some files, by path; those that cannot be read are left out. Raises `Missing` and OSError."""
    return {path: title_of(path, text) for path, text in read_beginnings(folder, paths, WINDOW)}
