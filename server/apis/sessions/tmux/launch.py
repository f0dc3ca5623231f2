"""Runs the command of a session, and keeps its exit status; tmux runs this in the session's window.

tmux takes commands of 16 KB at most, expands formats in some of its arguments and treats a last ``;`` in a way of its
own. What is to be run therefore comes in a file, and reaches the command as it is. The status is written down here
because tmux does not always know it, and forgets it when it ends. Like `capture`, this imports the standard library
alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

_LAUNCH = "launch.json"
_STATUS = "status"
_NOT_RUN = 127
"""The exit status where a command cannot be run, as shells have it."""
_UNKNOWN = "   "
_PASSED_ON = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP)
"""What a terminal sends to all in its foreground: it is meant for the command."""


def write(folder: Path, command: list[str], cwd: str, environment: dict[str, str]) -> None:
    """What is to be run, and where; ``environment`` in addition to the window's."""
    descriptor = os.open(folder / _LAUNCH, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"command": command, "folder": cwd, "environment": environment}, file)


def is_waiting(folder: Path) -> bool:
    """Whether what was written is neither run nor withdrawn."""
    return (folder / _LAUNCH).exists()


def exit_status(folder: Path) -> int | None:
    """The status that a session's command ended with; None where it was killed, or its window closed, or nobody can
    read it."""
    try:
        return int((folder / _STATUS).read_text())
    except (OSError, ValueError):
        return None


def withdraw(folder: Path) -> bool:
    """Takes back what was to be run; False where it was never written, or runs by now: one only can take it."""
    try:
        (folder / _LAUNCH).unlink()
    except FileNotFoundError:
        return False
    return True


def main(folder: Path) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would lose one that comes as the command begins
    try:
        with (folder / _LAUNCH).open(encoding="utf-8") as file:
            if not withdraw(folder):
                return _NOT_RUN
            launch = json.load(file)
    except FileNotFoundError:  # it was withdrawn
        return _NOT_RUN
    # Written over in the end, which even a full disk allows.
    status_file = os.open(folder / _STATUS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.write(status_file, _UNKNOWN.encode())
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        _become(launch["command"], launch["folder"], launch["environment"])
    closed: list[int] = []
    for number in _PASSED_ON:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, lambda number, _: closed.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            break
        os.kill(child, signal.SIGCONT)  # nobody else would: there is no shell
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    code = os.WEXITSTATUS(status)
    if not closed:  # else that is how it takes it
        os.pwrite(status_file, str(code).ljust(len(_UNKNOWN)).encode(), 0)
    return code


def _become(command: list[str], folder: str, environment: dict[str, str]) -> None:
    try:
        os.chdir(folder)
        os.execvpe(command[0], command, {**os.environ, **environment})  # noqa: S606  # no shell is what is wanted
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be run in {folder}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(_NOT_RUN)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
