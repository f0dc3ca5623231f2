"""How much of its context a coding session has used, from the transcript that Claude Code writes: JSON Lines, appended
to while it is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import PurePath
from typing import Any

from .....storage import InvalidDocument
from .....storage.documents import decode

_CHUNK = 64 << 10
MOST_BYTES = 8 << 20
"""How far back from its end a transcript is searched."""
_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
"""What stands in the context, as Claude Code itself counts it."""
_MOST_TOKENS = 2**53


class NotReadable(Exception):
    """There is no such transcript below the root; the message says why."""


def last_usage(root: str, path: str) -> int | None:
    """The tokens in the context as the last answer found it; None where the transcript tells of no answer, or of a
    compaction after it. Reads at most its last `MOST_BYTES`; for a thread. Raises `NotReadable`."""
    try:
        with ExitStack() as stack:
            file = _open(root, path, stack)
            for line in _from_end(file):
                if b"compact_boundary" in line and _is_boundary(line):
                    return None
                if b'"usage"' in line and (tokens := _tokens(line)) is not None:
                    return tokens
    except OSError as error:
        raise NotReadable(error.strerror or type(error).__name__) from error
    return None


def _open(root: str, path: str, stack: ExitStack) -> int:
    """A descriptor of a regular file. From the root on no link is followed: each folder is opened in the one before."""
    *folders, name = _below(root, path)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, folder)
    for part in folders:
        folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        stack.callback(os.close, folder)
    # Without O_NONBLOCK, opening a pipe would wait for who writes to it.
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    stack.callback(os.close, file)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise NotReadable("it is no file")
    return file


def _below(root: str, path: str) -> tuple[str, ...]:
    """The steps from the root to a path; the root may be called by its real name, too."""
    if "\0" not in path:
        for base in (root, os.path.realpath(root)):
            steps = PurePath(path).parts[len(PurePath(base).parts) :]
            if steps and PurePath(path).is_relative_to(base) and ".." not in steps:
                return steps
    raise NotReadable("it is not below transcript_root")


def _from_end(file: int) -> Iterator[bytes]:
    """The lines of a file, the last one first; the last may be torn."""
    end = position = os.fstat(file).st_size
    first, step = b"", _CHUNK
    least = max(0, end - MOST_BYTES)
    while position > least:
        step = min(step, position - least)
        position -= step
        first, *lines = (os.pread(file, step, position) + first).split(b"\n")
        yield from reversed(lines)
        step *= 2  # so that a line of many megabytes is not copied once a chunk
    if not least:
        yield first


def _tokens(line: bytes) -> int | None:
    entry = _decoded(line)
    message = entry.get("message")
    if entry.get("type") != "assistant" or entry.get("isSidechain") or not isinstance(message, dict):
        return None  # a subagent has a context of its own
    usage = message.get("usage")
    if message.get("model") == "<synthetic>" or not isinstance(usage, dict):
        return None  # Claude Code's own words: no model was asked
    counts = [usage.get(name) or 0 for name in _COUNTS]
    if not all(type(count) is int and 0 <= count <= _MOST_TOKENS for count in counts):
        return None
    return sum(counts)


def _is_boundary(line: bytes) -> bool:
    return _decoded(line).get("subtype") == "compact_boundary"


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        entry = decode(line)
    except InvalidDocument:
        return {}
    return entry if isinstance(entry, dict) else {}
