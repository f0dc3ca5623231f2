"""Becomes the command of a session; tmux runs this in the session's window.

tmux takes commands of 16 KB at most, expands formats in some of its arguments and treats a last ``;`` in a way of its
own. What is to be run therefore comes in a file, and reaches the command as it is. Like `capture`, this imports the
standard library alone.
"""

# pathlib takes longer to import than all the rest.
# ruff: noqa: PTH108, PTH123

from __future__ import annotations

import json
import os
import sys

NOT_FOUND = 127
"""The exit status where a command cannot be run, as shells have it."""


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        launch = json.load(file)
    os.unlink(path)
    command = launch["command"]
    os.environ.update(launch["environment"])
    try:
        os.chdir(launch["folder"])
        os.execvp(command[0], command)  # noqa: S606  # no shell is what is wanted
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be run in {launch['folder']}: {error.strerror}\n")
        sys.exit(NOT_FOUND)


if __name__ == "__main__":
    main(sys.argv[1])
