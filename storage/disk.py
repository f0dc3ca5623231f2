"""What the operating system says of a disk, in the words of the storage contract."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from .base import StorageFull, StorageUnavailable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raises an OSError of the block as `StorageFull` or `StorageUnavailable`, "cannot ``doing``: …", with its cause."""
    try:
        yield
    except OSError as error:
        kind = StorageFull if error.errno in _FULL else StorageUnavailable
        raise kind(f"cannot {doing}: {error.strerror or error}") from error
