"""tmux, asked by its command line: no shell parses what it is asked.

tmux has a syntax of its own for most of what it is told: targets, formats, and ``;`` between commands. So it is only
ever told ids, names that are made plain (`plain_name`), and paths that it passes on; the command of a session reaches
its window in a file (`launch`), and what is typed on standard input.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from ....config import LEGACY_NAMES
from ....errors import ServiceUnavailable
from . import capture, launch

log = logging.getLogger(__name__)

_DEADLINE = 5.0
"""Seconds; tmux answers within milliseconds, unless it is stopped."""
_MAX_CALLS = 8
"""At a time."""
_COLUMNS, _ROWS = 200, 50
"""Of a window that nobody looks at."""
_ENDING = ("server exited", "lost server", "no current target")
"""What tmux says where its server ends, having no session any more, just when it is asked."""
_MOVED_ON = ("duplicate session", "can't find session")
"""What tmux says where a session has begun, or ended, since it was asked which there are."""
_NO_SOCKET = "(No such file or directory)"
SESSION_OPTION = "@homeport_session"
"""A pane's, holds the session's id: ids of panes begin anew with each tmux server."""
VIEW_PREFIX = "homeport-view-"
"""Of the tmux sessions that terminals look through."""
_UNPLAIN = str.maketrans(dict.fromkeys(":.#$\\", "_"))
_BOTH_WAYS = ("-I", "-O")
"""Of a pipe from which nothing is to come: tmux sees at once when who reads it has died, and not by the next output."""
_PANE = ("pane_id", "window_id", "session_id", "session_name", "pane_pid", "pane_pipe", SESSION_OPTION)


class TmuxUnavailable(ServiceUnavailable):
    """503: tmux is not installed, or does not answer."""


class TmuxRefused(Exception):
    """tmux answered, and did not do what it was asked; the message is tmux's."""


class TmuxMovedOn(TmuxRefused):
    """There are not the sessions any more that there were, or the tmux server ended with the last of them: whoever asks
    again may be lucky."""


class Pane(NamedTuple):
    """A pane of one of our windows; ``pid``: of the program in it; ``piped``: whether what it prints is kept."""

    pane_id: str
    window_id: str
    tmux_session_id: str
    pid: int
    piped: bool


class TmuxSession(NamedTuple):
    id: str
    name: str
    windows: int
    attached: int


def plain_name(name: str) -> str:
    """The name of a tmux session or window, without what tmux gives a meaning; it does the same to some of it."""
    return name.translate(_UNPLAIN)


class Tmux:
    """The tmux server on a socket: a name, a path, or none for that of this user."""

    def __init__(self, socket: str | None) -> None:
        self._server: tuple[str, ...] = ()
        if socket is not None:
            self._server = ("-S" if "/" in socket else "-L", socket)
        # Threads, since a fork of a large process takes its time and uvloop's subprocesses hang where the first tmux is
        # asked, whose server goes on; of its own, since a tmux that does not answer is to hold up nothing else.
        self._threads = ThreadPoolExecutor(_MAX_CALLS, "tmux")

    def close(self) -> None:
        """Asks nothing more; who waits for an answer is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def command(self) -> tuple[str, ...]:
        """How this tmux is called; UTF-8 whatever the locale says."""
        return ("tmux", "-u", *self._server)

    async def available(self) -> bool:
        """Whether tmux is there and answers."""
        try:
            await self.sessions()
        except TmuxUnavailable:
            return False
        return True

    async def sessions(self) -> list[TmuxSession]:
        """The sessions that there are; those that terminals look through are left out."""
        rows = await self._list("list-sessions", ("session_id", "session_windows", "session_attached", "session_name"))
        found = [TmuxSession(id, name, int(windows), int(attached)) for id, windows, attached, name in rows]
        return [session for session in found if not session.name.startswith(VIEW_PREFIX)]

    async def panes(self) -> dict[str, Pane]:
        """Our panes that there are, by the session's id."""
        found: dict[str, Pane] = {}
        rows = await self._list("list-panes", _PANE, "-a")
        for id, window, session, name, pid, piped, ours in rows:
            if ours and not (ours in found and name.startswith(VIEW_PREFIX)):
                found[ours] = Pane(id, window, session, int(pid), piped == "1")
        return found

    async def open(self, session_id: str, *, tmux_session: str, window: str, folder: Path, cwd: str) -> Pane:
        """Opens a window for a session, whose ``folder`` holds what is to be launched and will hold what it prints.

        tmux does all of it before it reads anything that the program prints. ``cwd``: where windows begin that people
        open in a tmux session that is made for it. Raises `TmuxRefused`, and `TmuxMovedOn`.
        """
        name = plain_name(tmux_session)
        known = next((session.id for session in await self.sessions() if session.name == name), None)
        where: tuple[str, ...] = ("new-session", "-s", _escaped(name), "-x", str(_COLUMNS), "-y", str(_ROWS))
        if known is not None:
            where = ("new-window", "-t", f"{known}:")
        program = (sys.executable, "-I", "-S", launch.__file__, str(folder))
        shown = ("-d", "-P", "-F", _format(_PANE))
        target = f"{known or '=' + name}:={session_id}"
        try:
            [[pane, window_id, opened_in, _, pid, *_]] = await self._rows(
                *(*where, *shown, "-n", session_id, *map(_escaped, program), ";"),
                *("set-option", "-p", "-t", target, "remain-on-exit", "off", ";"),
                *("set-option", "-p", "-t", target, SESSION_OPTION, session_id, ";"),
                *("pipe-pane", *_BOTH_WAYS, "-t", target, _escaped(_capture(folder)), ";"),
                *("rename-window", "-t", target, "--", _escaped(plain_name(window))),
                cwd=cwd,
            )
        except TmuxRefused as error:
            if _no_server(error) or str(error).startswith(_MOVED_ON):
                raise TmuxMovedOn(*error.args) from error
            with suppress(TmuxRefused):  # it had not come to the window
                await self.run("kill-window", "-t", target)
            raise
        return Pane(pane, window_id, opened_in, int(pid), piped=True)

    async def pipe(self, pane: Pane, folder: Path) -> None:
        """Has what a pane prints kept again, where that has ended."""
        await self.run("pipe-pane", *_BOTH_WAYS, "-t", pane.pane_id, _escaped(_capture(folder)))

    async def type(self, pane: Pane, text: str) -> None:
        """Pastes a text, bracketed for programs that ask for it, and presses Enter."""
        buffer = f"homeport-{uuid4()}"
        paste: tuple[str, ...] = ()
        if text:
            load = ("load-buffer", "-b", buffer, "-", ";")
            paste = (*load, "paste-buffer", "-p", "-d", "-b", buffer, "-t", pane.pane_id, ";")
        await self.run(*_attend(pane), *paste, "send-keys", "-t", pane.pane_id, "Enter", stdin=text.encode())

    async def reads_lines(self, pane: Pane) -> bool:
        """Whether a pane's terminal gives its program whole lines, as it does unless the program edits them itself."""
        path = await self.run("display-message", "-p", "-t", pane.pane_id, "#{pane_tty}")
        return await asyncio.to_thread(_is_canonical, path.rstrip("\n"))

    async def press(self, pane: Pane, keys: Sequence[str]) -> None:
        """Presses keys by their names."""
        await self.run(*_attend(pane), "send-keys", "-t", pane.pane_id, "--", *map(_escaped, keys))

    async def focus(self, pane: Pane) -> None:
        """Makes a pane's window the one that its tmux session shows."""
        window = f"{pane.tmux_session_id}:{pane.window_id}"
        await self.run("select-window", "-t", window, ";", "select-pane", "-t", pane.pane_id)

    async def kill(self, pane: Pane) -> None:
        """Closes a pane; one that is gone is no error."""
        with suppress(TmuxRefused):
            await self.run("kill-pane", "-t", pane.pane_id)

    def attach(self, pane: Pane) -> tuple[str, ...]:
        """The command of a terminal that shows a pane's window, in a tmux session of its own that has no other and ends
        with it, or with the terminal."""
        name = f"{VIEW_PREFIX}{uuid4()}"
        return (
            # -N: no tmux server is begun for it. Its first window is replaced, or ends where the pane's is gone.
            *(*self.command, "-N", "new-session", "-s", name, "sleep", "5", ";"),
            *("set-option", "destroy-unattached", "on", ";"),
            *("set-option", "status", "off", ";"),
            *("link-window", "-k", "-s", pane.window_id, "-t", f"={name}:^"),
        )

    async def run(self, *arguments: str, stdin: bytes = b"", cwd: str | None = None) -> str:
        """Gives tmux commands; what it prints. Raises `TmuxUnavailable` or `TmuxRefused`."""
        call = partial(_call, (*self.command, *arguments), stdin, cwd)
        try:
            async with asyncio.timeout(_DEADLINE):  # waiting for a thread is part of it
                done = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise TmuxUnavailable("tmux does not answer") from error
        except FileNotFoundError as error:
            raise TmuxUnavailable("tmux is not installed") from error
        except OSError as error:
            raise TmuxUnavailable("tmux cannot be run") from error
        if done.returncode:
            problem = done.stderr.decode(errors="replace").strip()
            raise TmuxRefused(problem or f"exit status {done.returncode}")
        return done.stdout.decode(errors="replace")

    async def _list(self, command: str, fields: Sequence[str], *options: str) -> list[list[str]]:
        """A row for each of what is listed; none where no tmux server runs."""
        try:
            return await self._rows(command, *options, "-F", _format(fields))
        except TmuxRefused as error:
            if _no_server(error):
                return []
            log.warning("tmux: %s", error)
            raise TmuxUnavailable("tmux cannot be reached") from error

    async def _rows(self, *arguments: str, cwd: str | None = None) -> list[list[str]]:
        out = await self.run(*arguments, cwd=cwd)
        fields = arguments[arguments.index("-F") + 1].count("\t")
        return [line.split("\t", fields) for line in out.splitlines()]


def _call(command: Sequence[str], stdin: bytes, cwd: str | None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # noqa: S603  # no shell parses it
        command,
        input=stdin,
        capture_output=True,
        timeout=_DEADLINE,
        cwd=cwd,
        env=environment(os.environ),
        check=False,
    )


def _no_server(error: TmuxRefused) -> bool:
    return str(error).startswith(("no server running", *_ENDING)) or str(error).endswith(_NO_SOCKET)


def _format(fields: Sequence[str]) -> str:
    return "\t".join(f"#{{{field}}}" for field in fields)


def _escaped(argument: str) -> str:
    """An argument that does not end tmux's command."""
    return f"{argument[:-1]}\\;" if argument.endswith(";") else argument


def _is_canonical(terminal: str) -> bool:
    try:
        descriptor = os.open(terminal, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TmuxRefused(f"{terminal}: {error.strerror}") from error  # the pane is gone
    try:
        return bool(termios.tcgetattr(descriptor)[3] & termios.ICANON)
    except termios.error as error:
        raise TmuxRefused(f"{terminal}: {error.args[-1]}") from error
    finally:
        os.close(descriptor)


def _capture(folder: Path) -> str:
    """The shell's command that keeps what a pane prints. tmux expands times in it, too."""
    words = (sys.executable, "-I", "-S", capture.__file__, str(folder))
    return f"exec {' '.join(map(_word, words))}".replace("%", "%%")


def _word(text: str) -> str:
    """A word of a shell's command in which tmux expands formats: a quote after ``#`` keeps it from being one of tmux's,
    and for the shell ends a quotation that goes on at once."""
    return "'" + text.replace("'", "'\\''").replace("#", "#''") + "'"


def _attend(pane: Pane) -> tuple[str, ...]:
    """Leaves copy mode, in which keys would go to tmux."""
    return ("copy-mode", "-q", "-t", pane.pane_id, ";")


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a tmux server that begins now gives to all programs in it: none of our settings, of which some are secret;
    and not the tmux that we may have been started in."""
    ours = {"TMUX", "TMUX_PANE", *LEGACY_NAMES}
    return {name: value for name, value in environ.items() if name not in ours and not name.startswith("HOMEPORT_")}
