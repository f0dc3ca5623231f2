"""Ids of what the server makes."""


def new_id() -> str:
    """A UUID of version 7 (RFC 9562), as text: ids sort as they were made."""
    from uuid_utils import uuid7  # half a megabyte, which a server at rest does without

    return str(uuid7())
