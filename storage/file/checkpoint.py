"""A checkpoint of the file back end: the data files written anew, all of them at one moment.

What is new is first written beside what it will replace, as ``<name>.<number>.new``, where the number is that of the
journal segment with which the next replay begins. Then the manifest is replaced: this is the moment. Then `finish` puts
the new files in their places. Whoever opens the store repeats that for the manifest's number, and clears away the files
of every other number: a checkpoint that did not come about.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from uuid import uuid4

import msgspec

from .. import disk
from ..disk import translated
from ..errors import StorageDamaged
from ..records import Collection
from .journal import Journal
from .sealed import seal, unseal

FORMAT = 1
_NEW = re.compile(r"(.+)\.([1-9][0-9]*)\.new")


class Kept(msgspec.Struct, frozen=True):
    """How a checkpoint left a collection: the bytes and number of its records, a sum over their ids and versions that
    shows whether they are still the same, and the number of lines in its index."""

    collection: Collection
    floor: int = 0
    size: int = 0
    records: int = 0
    sum: int = 0
    indexed: int = 0


class Manifest(msgspec.Struct, frozen=True):
    """What a store is: its id; the version up to which its data files hold everything; the segment of the journal that
    says what follows; how its collections are kept. ``removed``: the files that the last checkpoint made superfluous,
    as paths in the store."""

    id: str
    version: int
    journal: int
    collections: list[Kept]
    removed: list[str] = []
    format: int = FORMAT


class Folder:
    """The folder of a store, and where things are in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / "manifest"
        self.data = path / "data"
        self.index = path / "index"
        self.journal = Journal(path / "journal")

    def open(self) -> Manifest:
        """The manifest of the store in this folder, which is made where there is none; what a checkpoint left undone is
        done."""
        disk.make_folder(self.path)
        for folder in (self.data, self.index, self.journal.folder):
            disk.make_folder(folder)
        if not self.manifest.exists():
            self._must_be_empty()
            disk.sync_folder(self.path.parent)  # a server that was killed may have made the folder, and no more
            self.journal.create()
            self.replace_manifest(self.new_manifest(Manifest(str(uuid4()), 0, 1, [])))
        manifest = self._read()
        disk.sync_folder(self.path)  # that the last server replaced the manifest may not be durable yet
        # That segments are left from before it shows that the checkpoint was not finished. Otherwise a removed file
        # that is there again was put there by a person.
        unfinished = any(number < manifest.journal for number in self.journal.segments())
        self.finish(manifest, remove=unfinished)
        return manifest

    def new_manifest(self, manifest: Manifest) -> Path:
        """Writes a manifest that does not count yet."""
        file = disk.NewFile(self.manifest.with_name("manifest.new"))
        try:
            file.write(seal(msgspec.json.encode(manifest)))
            file.done()
        finally:
            file.close()
        return file.path

    def replace_manifest(self, by: Path) -> None:
        """Makes another manifest count. Where this raises, either may be found on the next start."""
        disk.replace(self.manifest, by)
        disk.sync_folder(self.path)

    def finish(self, manifest: Manifest, *, remove: bool = True) -> None:
        """Does, or repeats, what remains to be done when a checkpoint's manifest is written."""
        for folder in (self.data, self.index, *filter(Path.is_dir, self.data.iterdir())):
            new = [(path, match) for path in folder.iterdir() if (match := _NEW.fullmatch(path.name))]
            for path, match in new:
                if int(match[2]) == manifest.journal:
                    disk.replace(path.with_name(match[1]), path)
                else:
                    disk.remove(path)
            if new:
                disk.sync_folder(folder)
        paths = [self.path / name for name in manifest.removed] if remove else []
        for path in paths:
            disk.remove(path)
        for folder in {path.parent for path in paths}:
            disk.sync_folder(folder)
        self.journal.drop(manifest.journal)

    def probe(self) -> None:
        """Raises `StorageUnavailable` unless the store could be written to."""
        self.journal.be_whole()
        with translated(f"write {self.path}"):
            file = disk.NewFile(self.path / "ping")
            try:
                file.write(b"\n")
                file.done()
            finally:
                file.close()
                disk.remove(file.path)

    def _must_be_empty(self) -> None:
        """A store was made here only if it has a manifest, or was never written to."""
        kept = [*self.data.iterdir(), *self.index.iterdir()]
        if kept or any(path.stat().st_size for path in self.journal.folder.iterdir()):
            raise StorageDamaged(f"{self.manifest} is missing")

    def _read(self) -> Manifest:
        try:
            text = unseal(self.manifest.read_bytes())
            version = msgspec.json.decode(text).get("format")
            if version == FORMAT:
                return msgspec.json.decode(text, type=Manifest)
        except ValueError as error:
            raise StorageDamaged(f"{self.manifest}, line 1: {error}") from error
        raise StorageDamaged(f"{self.manifest} was written by a later Homeport (format {version}, not {FORMAT})")


class Checkpoint:
    """The files of one checkpoint, while they are written. ``decided``: whether its manifest may have been written."""

    def __init__(self, folder: Folder, number: int) -> None:
        self.folder = folder
        self.number = number
        self.decided = False
        self.removed: list[str] = []
        self._files: list[disk.NewFile] = []

    def create(self, path: Path) -> disk.NewFile:
        """A file that takes a path's place with this checkpoint."""
        file = disk.NewFile(path.with_name(f"{path.name}.{self.number}.new"))
        self._files.append(file)
        return file

    def remove(self, path: Path) -> None:
        """Lets a file go with this checkpoint."""
        self.removed.append(str(path.relative_to(self.folder.path)))

    def commit(self, manifest: Manifest) -> None:
        """Makes all of it count."""
        for folder in {self.folder.data, *[file.path.parent for file in self._files]}:
            disk.sync_folder(folder)
        new = self.folder.new_manifest(manifest)
        self.decided = True
        self.folder.replace_manifest(new)

    def discard(self) -> None:
        """Clears away what was written, unless it may count already."""
        for file in self._files:
            # What stays is cleared away by the next checkpoint or start; why we are here matters more.
            with contextlib.suppress(OSError):
                file.close()
                if not self.decided:
                    disk.remove(file.path)
