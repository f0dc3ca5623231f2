"""Record ids as file names that every file system keeps apart.

An id's name is its UTF-8 with every byte but ``a-z 0-9 - _ .`` as ``%`` and two hexadecimal digits: no capitals, so
that ``A`` and ``a`` stay two files where case does not count; nothing but ASCII, which no file system normalizes; no
``/``. A dot that would hide the file, and a name that Windows keeps for a device (``con``), are escaped too. Where that
comes to more than 180 bytes, the name is the beginning of it, ``~``, and a hash: then the id is to be kept elsewhere.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from urllib.parse import unquote_to_bytes

SUFFIX = ".json"
_MAX_BYTES = 180
_KEPT_OF_LONG = 80
_ESCAPED = re.compile(rb"[^a-z0-9._-]|^\.")
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?=\.|$)")


def file_name(id: str, suffix: str = SUFFIX) -> str:
    """The name of a record's or collection's file: at most 180 characters of ASCII and the suffix."""
    return _escaped(id.encode()) + suffix


def folder_name(collection: str) -> str:
    """The name of a collection's folder: without a dot, so that it is no other collection's file."""
    return _escaped(collection.encode()).replace(".", "%2e")


def document_id(name: str) -> str | None:
    """The id whose file has this name; None where there is none or the name does not tell it."""
    try:
        id = unquote_to_bytes(name.removesuffix(SUFFIX)).decode()
    except UnicodeDecodeError:
        return None
    return id if id and file_name(id) == name else None


def _escaped(data: bytes) -> str:
    name = _ESCAPED.sub(lambda byte: b"%%%02x" % byte[0][0], data).decode()
    if _DEVICE.match(name):
        name = f"%{ord(name[0]):02x}{name[1:]}"
    if len(name) > _MAX_BYTES:
        name = f"{name[:_KEPT_OF_LONG]}~{blake2b(data, digest_size=16).hexdigest()}"
    return name
