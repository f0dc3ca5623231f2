"""Scripts in other languages that test against `homeport serve --test`, for real."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.parametrize(
    "command", [("node", "--test", "notes.test.mjs"), ("bash", "sync.sh")], ids=lambda command: command[0]
)
def test_example(command: tuple[str, ...], tmp_path: Path) -> None:
    for tool in (command[0], "curl"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    homeport = tmp_path / "homeport"
    homeport.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m homeport "$@"\n')
    homeport.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOMEPORT_")}
    run = subprocess.run(
        command,
        cwd=FOLDER,
        env=environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout
