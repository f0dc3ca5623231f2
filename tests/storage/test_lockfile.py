"""storage/lockfile.py: one owner, whatever the others do."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from homeport.storage import StorageLocked, StorageUnavailable, lockfile
from homeport.storage.lockfile import StoreLock, file_system


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[StoreLock]:
    lock = StoreLock(tmp_path / "store.db")
    lock.acquire()
    yield lock
    lock.release()


def test_the_file_stands_beside_the_store_and_is_its_owners(tmp_path: Path, lock: StoreLock) -> None:
    path = tmp_path / "store.db.lock"
    assert path.read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_owner_is_refused_by_name(tmp_path: Path, lock: StoreLock) -> None:
    store = re.escape(str(tmp_path / "store.db"))
    with pytest.raises(StorageLocked, match=rf"^{store} is in use by process {os.getpid()}$"):
        StoreLock(tmp_path / "store.db").acquire()


def test_another_name_of_the_same_store_is_the_same_lock(tmp_path: Path, lock: StoreLock) -> None:
    (tmp_path / "alias").symlink_to("store.db")
    with pytest.raises(StorageLocked):
        StoreLock(tmp_path / "alias").acquire()


def test_another_store_is_another_lock(tmp_path: Path, lock: StoreLock) -> None:
    other = StoreLock(tmp_path / "other.db")
    other.acquire()
    other.release()


def test_released_it_can_be_taken_and_its_file_stays(tmp_path: Path, lock: StoreLock) -> None:
    inode = lock.path.stat().st_ino
    lock.release()
    lock.release()
    assert lock.path.stat().st_ino == inode
    again = StoreLock(tmp_path / "store.db")
    again.acquire()
    assert again.path.stat().st_ino == inode
    again.release()


HOLD = """
import sys
from pathlib import Path
from homeport.storage.lockfile import StoreLock
StoreLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StorageLocked, match=f"is in use by process {holder.pid}$"):
            StoreLock(path).acquire()
        holder.kill()
    lock = StoreLock(path)
    lock.acquire()
    lock.release()


def test_a_child_made_by_exec_does_not_inherit_it(tmp_path: Path, lock: StoreLock) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock.release()
        again = StoreLock(tmp_path / "store.db")
        again.acquire()
        assert child.poll() is None
        again.release()


FORK = """
import os, sys
from pathlib import Path
from homeport.storage.lockfile import StoreLock
lock = StoreLock(Path(sys.argv[1]))
lock.acquire()
if os.fork() == 0:
    print("forked", flush=True)
    sys.stdin.read()
else:
    os._exit(0)
"""


def test_a_child_made_by_fork_does_not_inherit_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with subprocess.Popen([sys.executable, "-c", FORK, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"forked\n"
        parent.wait()
        lock = StoreLock(path)
        lock.acquire()  # the grandchild still runs: it reads what nobody writes
        lock.release()


def test_the_folders_are_made(tmp_path: Path) -> None:
    lock = StoreLock(tmp_path / "share" / "data" / "store.db")
    lock.acquire()
    for folder in tmp_path / "share", tmp_path / "share" / "data":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    lock.release()


def test_where_it_cannot_be_made_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailable, match=r"^cannot lock .*/file/store\.db\.lock: ") as raised:
        StoreLock(tmp_path / "file" / "store.db").acquire()
    assert isinstance(raised.value.__cause__, OSError)


MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:51 / /srv rw - xfs /dev/vdb rw
41 27 0:52 / /srv/share rw,relatime shared:7 master:2 - nfs4 nas:/export rw,vers=4.2
42 27 0:53 / /srv/two\040words rw - fuse.sshfs me@host: rw
43 27 0:54 / /mnt rw - cifs //nas/mnt rw
44 27 0:55 / /mnt rw - btrfs /dev/vdc rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/home/me/store", "ext4", id="the root"),
        pytest.param("/srv/store", "xfs", id="a mount"),
        pytest.param("/srv/share/store", "nfs4", id="a mount in a mount, with optional fields"),
        pytest.param("/srv/share", "nfs4", id="the mount point itself"),
        pytest.param("/srv/shared/store", "xfs", id="a name that only begins alike"),
        pytest.param("/srv/two words/store", "fuse.sshfs", id="an escaped name"),
        pytest.param("/mnt/store", "btrfs", id="mounted over, the later"),
    ],
)
def test_the_file_system_is_the_longest_mount_points(path: str, expected: str) -> None:
    assert file_system(Path(path), MOUNTS) == expected


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse.glusterfs", "ceph"])
def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"27 1 254:0 / / rw,relatime - {kind} server:/ rw\n")
    monkeypatch.setattr(lockfile, "_MOUNTS", mounts)
    with pytest.raises(StorageUnavailable, match=rf"is on a network file system \({kind}\), where locks"):
        StoreLock(tmp_path / "new" / "store.db").acquire()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", "virtiofs"])
def test_local_file_systems_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"27 1 254:0 / / rw,relatime - {kind} /dev/vda rw\n")
    monkeypatch.setattr(lockfile, "_MOUNTS", mounts)
    lock = StoreLock(tmp_path / "store.db")
    lock.acquire()
    lock.release()


def test_a_system_without_proc_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockfile, "_MOUNTS", tmp_path / "missing")
    lock = StoreLock(tmp_path / "store.db")
    lock.acquire()
    lock.release()
