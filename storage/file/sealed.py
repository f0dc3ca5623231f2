"""Lines that show whether they are whole: of the journal, the manifest and the indexes of the file back end.

A sealed line is the length of a JSON text and its CRC-32, both as eight hexadecimal digits, the text, and a line break.
The CRC guards against torn writes and failing disks, not against people, and costs a tenth of a cryptographic hash. The
length tells a line that was never finished from one that lost its line break.
"""

from __future__ import annotations

from zlib import crc32

_HEADER_BYTES = 18


def seal(text: bytes) -> bytes:
    """The line for a text without line breaks."""
    return b"%08x %08x %b\n" % (len(text), crc32(text), text)


def unseal(line: bytes) -> bytes:
    """The text of a line; raises ValueError where it is not as it was written."""
    text = line[_HEADER_BYTES:-1]
    if seal(text) != line:
        raise ValueError("the line is damaged: its length or checksum is wrong")
    return text


def may_be_torn(line: bytes) -> bool:
    """Whether a damaged last line of a file can be one whose writing was broken off: not where it holds more than it
    announces."""
    try:
        return len(line) <= _HEADER_BYTES + int(line[:8], 16) + 1
    except ValueError:
        return True
