"""Documents whose examples are run: a shell in which `homeport` is this one, and a server for it."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from homeport import load_config

ROOT = Path(__file__).parent.parent
URL = "http://127.0.0.1:8000"
"""Where documents say that the server is."""


def blocks(text: str, language: str) -> list[str]:
    """The blocks of code in a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def environment(store: Path) -> dict[str, str]:
    """The variables of a shell in which the command `homeport` is this one, with an SQLite store of its own."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOMEPORT_STORAGE__URL": f"sqlite:{store}",
    }


HOMEPORT_SERVE = (sys.executable, "-m", "homeport", "serve")


@contextmanager
def served(
    environment: Mapping[str, str], command: Sequence[str] = HOMEPORT_SERVE, folder: Path | None = None
) -> Iterator[str]:
    """The URL of a server on a free port, that ends well."""
    with subprocess.Popen(
        [*command, "--port", "0"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.terminate()
        assert server.wait() == 0


def shell(script: str, url: str, environment: Mapping[str, str], folder: Path | None = None) -> list[str]:
    """The lines that a script prints, run with the server that there is; what each `curl` answers has its own."""
    script = re.sub(r"^( *)curl", r"\1echo; curl", script, flags=re.MULTILINE).replace(URL, url)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if line]


def check_settings(text: str, folder: Path) -> None:
    """A TOML text is a configuration, in the working folder; the files of secrets that it names are there."""
    assert tomllib.loads(text)
    for name in re.findall(r'_file = "([^"]+)"', text):
        (folder / name).write_text("a secret")
    file = folder / "homeport.toml"
    file.write_text(text)
    load_config(file, environ={})
