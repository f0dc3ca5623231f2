"""sessions/tmux/launch.py, in a terminal of its own."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic

from homeport.server.apis.sessions.tmux import launch

IN_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY); os.execv(sys.argv[1], sys.argv[1:])"


def interrupted(folder: Path, seconds: float) -> tuple[bytes, int]:
    """What a terminal shows, and how its program ended, where Ctrl-C came so long after a command was begun."""
    launch.write(folder, ["sleep", "60"], "/", {})
    terminal, end = os.openpty()
    command = [sys.executable, "-S", "-c", IN_TERMINAL, sys.executable, "-S", launch.__file__, str(folder)]
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, start_new_session=True) as program:
        os.close(end)
        while launch.is_waiting(folder):
            pass
        due = monotonic() + seconds
        while monotonic() < due:
            pass
        os.write(terminal, b"\x03")
        screen = b""
        with suppress(OSError):  # how Linux tells the end
            while data := os.read(terminal, 4096):
                screen += data
        os.close(terminal)
    return screen, program.returncode


def test_a_command_that_was_withdrawn(tmp_path: Path) -> None:
    launch.write(tmp_path, ["echo", "here"], "/", {})
    assert launch.withdraw(tmp_path)
    command = [sys.executable, "-S", launch.__file__, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (127, b"", b"")


def test_ctrl_c_as_a_command_begins(tmp_path: Path) -> None:
    for tenth in range(40):
        folder = tmp_path / str(tenth)
        folder.mkdir()
        screen, status = interrupted(folder, tenth / 10_000)
        assert screen == b"^C"
        assert status in (128 + signal.SIGINT, -signal.SIGINT)
