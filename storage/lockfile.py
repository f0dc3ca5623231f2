"""One server owns a store: the lock beside it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path
from weakref import WeakSet

from .disk import make_folder, translated
from .errors import StorageLocked, StorageUnavailable

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"nfs4?|cifs|smb[23]?|smbfs|ncpfs|9p|afs|ceph|lustre|davfs|fuse\.(sshfs|ceph|glusterfs|rclone|s3fs|davfs2?|smbnetfs)"
)


class StoreLock:
    """An exclusive `flock` on ``<path>.lock``, held until it is released or the process ends, however it ends.

    The file stays when the lock is gone: whoever unlinked it could leave two servers with a lock on two files of one
    name. It holds the owner's process id, for the message. A child process does not inherit the lock. Network file
    systems are refused: on them a lock or an fsync may hold on one machine only.
    """

    def __init__(self, path: Path) -> None:
        real = Path(os.path.realpath(path))
        self.path = real.with_name(real.name + ".lock")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Takes the lock at once, making the folder it is to stand in.

        Raises `StorageLocked` where another holds it and `StorageUnavailable` where it cannot be had.
        """
        if kind := network_file_system(self.path):
            raise StorageUnavailable(
                f"{self.path.parent} is on a network file system ({kind}), where locks and fsync cannot be relied on: "
                "keep the store on a local disk"
            )
        with translated(f"lock {self.path}"):
            make_folder(self.path.parent)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(descriptor, 20).decode("ascii", "replace").strip()
                os.close(descriptor)
                raise StorageLocked(f"{self.path.with_suffix('')} is in use by process {owner or 'unknown'}") from None
            except BaseException:
                os.close(descriptor)
                raise
        # Who holds the lock is told for the message alone: a full disk must not keep a store from being read.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, os.pwrite(descriptor, b"%d\n" % os.getpid(), 0))
        self._descriptor = descriptor
        _held.add(self)

    def release(self) -> None:
        """Lets the lock go; releasing one that is not held is no error."""
        _held.discard(self)
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_held: WeakSet[StoreLock] = WeakSet()


def _release_in_child() -> None:
    # The lock belongs to the open file that parent and child share, and would outlive the parent in the child.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)


def network_file_system(path: Path) -> str | None:
    """The type of the file system that a path is on, or would be, if that is a network's; None where it is local or the
    system does not tell (no /proc)."""
    try:
        mounts = _MOUNTS.read_text(errors="surrogateescape")
    except FileNotFoundError:
        return None
    kind = file_system(path, mounts)
    return kind if _NETWORK.fullmatch(kind) else None


def file_system(path: Path, mounts: str) -> str:
    """The type of the file system that a path is on, by the text of ``/proc/self/mountinfo`` (proc(5)): that of the
    longest mount point above the path, of two at one place the later."""
    found, longest = "", -1
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        point = Path(_unescaped(fields.split(" ")[4]))
        if path.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = rest.split(" ")[0], len(point.parts)
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
