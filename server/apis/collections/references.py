"""Which schema refers to which: the files that a schema needs, found on this disk or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from ....storage.documents import InvalidDocument, decode
from ...errors import json_pointer

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILE = 2**20
"""Bytes of a schema file."""
MAX_REFERENCES = 5_000
"""References that one schema needs, in all of its files."""
_MAX_LOOKED_AT = 1_000
"""Files that are looked at for an ``$id``."""
_META_SCHEMAS = ("https://json-schema.org/", "http://json-schema.org/")
"""What the validator has itself."""
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
"""Keywords whose members are schemas under names that are no keywords."""
_DATA = {"const", "enum", "default", "examples"}
"""Keywords that hold no schemas."""


class SchemaError(Exception):
    """A schema cannot be used: ``file``, where in it (a JSON pointer) and why."""

    def __init__(self, file: Path, pointer: str, reason: str) -> None:
        super().__init__(f"{file}: {pointer}: {reason}" if pointer else f"{file}: {reason}")


class _Reference(NamedTuple):
    schema: dict[str, Any]
    """What holds the keyword."""
    target: str
    """A URI, with a fragment."""
    file: Path
    pointer: str


class Bundle:
    """A schema file and all that it refers to. Raises `SchemaError`.

    ``folder``: where its files have to be, a real path. ``documents``: their contents by the URI of each.
    ``targets``: the schemas that each schema refers to, by its `id`.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        self.folder = folder
        self.file = file
        self.uri = file.as_uri()
        self.documents: dict[str, Any] = {}
        self.targets: dict[int, list[Any]] = {}
        self._files: dict[str, Path] = {}
        self._schemas: dict[str, Any] = {}
        self._bases: dict[Path, str] = {}
        self._todo: list[_Reference] = []
        self.root = self._read(self.uri, file)
        resolved = 0
        while self._todo:
            resolved += 1
            if resolved > MAX_REFERENCES:
                raise SchemaError(file, "", f"has more than {MAX_REFERENCES} references")
            reference = self._todo.pop()
            target = self._resolve(reference)
            if target is not None:
                self.targets.setdefault(id(reference.schema), []).append(target)

    def files(self) -> Iterator[tuple[Path, Any]]:
        """Every file, with its contents."""
        for uri, contents in self.documents.items():
            yield self._files[uri], contents

    def _read(self, uri: str, file: Path) -> Any:
        try:
            if file.stat().st_size > MAX_FILE:
                raise SchemaError(file, "", f"is larger than {MAX_FILE:,} bytes")
            contents = decode(file.read_bytes())
        except OSError as error:
            raise SchemaError(file, "", f"cannot be read: {error.strerror}") from None
        except InvalidDocument as error:
            raise SchemaError(file, "", error.message) from None
        if not isinstance(contents, dict | bool):
            raise SchemaError(file, "", "is no JSON Schema, which is an object or a boolean")
        self.documents[uri] = self._schemas[uri] = contents
        self._files[uri] = file
        self._scan(contents, uri, file)
        return contents

    def _scan(self, contents: Any, uri: str, file: Path) -> None:
        """Notes what can be referred to in a file, and what it refers to."""
        todo: list[tuple[Any, str, tuple[str | int, ...], bool]] = [(contents, uri, (), True)]
        while todo:
            node, base, path, keywords = todo.pop()
            if isinstance(node, list):
                todo += [(item, base, (*path, place), True) for place, item in enumerate(node)]
                continue
            if not isinstance(node, dict):
                continue
            if keywords:
                base = self._named(node, base)
                if not path:
                    self._bases[file] = base
                for key in _REFERENCES:
                    if isinstance(reference := node.get(key), str):
                        target = urljoin(base, reference)
                        self._todo.append(_Reference(node, target, file, json_pointer((*path, key))))
            for key, value in node.items():
                if not (keywords and key in _DATA):
                    todo.append((value, base, (*path, key), not (keywords and key in _NAMED)))

    def _named(self, schema: dict[str, Any], base: str) -> str:
        """The base URI of what is in a schema, which may say its own."""
        id = schema.get("$id", schema.get("id"))
        if isinstance(id, str):
            if not id.startswith("#"):
                base = urldefrag(urljoin(base, id)).url
                self._schemas.setdefault(base, schema)
            else:  # an anchor, until draft 7
                self._schemas.setdefault(base + id, schema)
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(anchor := schema.get(key), str):
                self._schemas.setdefault(f"{base}#{anchor}", schema)
        return base

    def _resolve(self, reference: _Reference) -> Any:
        """The schema that is meant; None for one that the validator knows."""
        uri, fragment = urldefrag(reference.target)
        if uri not in self._schemas:
            if uri.startswith(_META_SCHEMAS):
                return None
            self._read(uri, self._file_of(uri, reference))
        if reference.target in self._schemas:
            return self._schemas[reference.target]
        target = self._schemas[uri]
        if not fragment:
            return target
        if not fragment.startswith("/"):
            raise SchemaError(reference.file, reference.pointer, f"there is no anchor {fragment}")
        for step in unquote(fragment)[1:].split("/"):
            key = step.replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(key)] if isinstance(target, list) else target[key]
            except (LookupError, TypeError, ValueError):
                raise SchemaError(reference.file, reference.pointer, f"there is nothing at #{fragment}") from None
        return target

    def _file_of(self, uri: str, reference: _Reference) -> Path:
        """The file of a URI, in the folder."""
        parts = urlsplit(uri)
        if parts.scheme == "file":
            path = Path(unquote(parts.path)).resolve()
            if parts.netloc or not path.is_relative_to(self.folder):
                raise SchemaError(reference.file, reference.pointer, f"leaves the folder {self.folder}")
            if not path.is_file():
                raise SchemaError(reference.file, reference.pointer, f"there is no file {path}")
            return path
        if (file := self._with_id(uri)) is not None:
            return file
        base = self._bases.get(reference.file, "").rpartition("/")[0] + "/"
        if uri.startswith(base):  # the $id of a file beside this one, which says none
            path = (reference.file.parent / unquote(uri.removeprefix(base))).resolve()
            if path.is_relative_to(self.folder) and path.is_file():
                return path
        reason = f"{uri} is no file in {self.folder}, and references are never fetched"
        raise SchemaError(reference.file, reference.pointer, reason)

    def _with_id(self, uri: str) -> Path | None:
        """The file in the folder that says that it is ``uri``."""
        for place, file in enumerate(sorted(self.folder.rglob("*.json"))):
            if place == _MAX_LOOKED_AT:
                break
            path = file.resolve()
            if path.is_relative_to(self.folder) and path.stat().st_size <= MAX_FILE and _says(path, uri):
                return path
        return None


def _says(file: Path, uri: str) -> bool:
    try:
        contents = decode(file.read_bytes())
    except (OSError, InvalidDocument):
        return False
    id = contents.get("$id", contents.get("id")) if isinstance(contents, dict) else None
    return isinstance(id, str) and urldefrag(id).url == uri
