"""Follows a Dockerfile where there is no container engine: each stage in a copy-on-write copy of this machine's root.

The base image `python:…` is taken to be this machine with the Python that runs here at /usr/local, its libraries
uncompiled as Docker's are. What is mounted is so for a process of its own alone, and gone with it. It takes root.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from string import Template

BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What the base image has."""
_OURS = re.compile(r"PIP_|(https?|no)_proxy$", re.IGNORECASE)
"""Variables that say where this machine gets packages from, as a builder's do."""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile, each with what follows it as one line."""
    code = "\n".join(line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    for line in code.replace("\\\n", " ").splitlines():
        name, _, rest = line.partition(" ")
        yield name, rest.strip()


def in_context(checkout: Path) -> Iterator[Path]:
    """The files that `.dockerignore` lets into a build. Of patterns it may hold `*` first, `!name` and `**/name`."""
    first, *patterns = (line for line in (checkout / ".dockerignore").read_text().splitlines() if line[:1] != "#")
    assert first == "*"
    out = [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]
    kept = [checkout / pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")]
    assert len(patterns) == len(out) + len(kept)
    for file in (file for top in kept for file in (top.rglob("*") if top.is_dir() else [top])):
        if file.is_file() and not any(fnmatch(part, name) for part in file.parts for name in out):
            yield file.relative_to(checkout)


@dataclass
class Stage:
    """A stage: its root, and what its instructions have said."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH})
    build_env: dict[str, str] = field(default_factory=lambda: {k: v for k, v in os.environ.items() if _OURS.match(k)})
    """Variables that a container of it does not have."""
    user: str = "0:0"
    workdir: str = "/"
    volumes: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    stop_signal: str = ""

    def inside(self, *command: str, env: dict[str, str]) -> list[str]:
        """A command, as one that its user runs in it."""
        uid, gid = self.user.split(":")
        return [
            *("chroot", str(self.root), "setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"),
            *(() if uid == "0" else ("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")),
            *("env", "-i", f"--chdir={self.workdir}", *(f"{name}={value}" for name, value in env.items())),
            *command,
        ]

    def follow(self, name: str, rest: str, sources: dict[str, Path]) -> None:
        """Does what an instruction says. ``sources``: the roots from which COPY takes, the context's as ""."""
        match name:
            case "ARG":
                argument, _, default = rest.partition("=")
                self.build_env[argument] = default
            case "ENV":
                pairs = [pair.partition("=") for pair in shlex.split(rest)]
                self.env |= {name: Template(value).substitute(self.env) for name, _, value in pairs}
            case "WORKDIR":
                self.workdir = rest
                self.at(rest).mkdir(parents=True, exist_ok=True)
            case "COPY":
                *options, source, target = rest.split()
                self._copy(sources["".join(options).removeprefix("--from=")], source, target)
            case "RUN":
                env = {"HOME": "/root"} | self.build_env | self.env
                subprocess.run(self.inside("sh", "-c", rest, env=env), check=True)
            case "USER":
                self.user = rest
            case "VOLUME":
                self.volumes.append(rest)
            case "EXPOSE":
                assert rest.isdecimal()
            case "STOPSIGNAL":
                self.stop_signal = rest
            case "HEALTHCHECK":
                self.health = json.loads(rest.partition("CMD ")[2])
            case "ENTRYPOINT":
                self.entrypoint = json.loads(rest)
            case "CMD":
                self.command = json.loads(rest)
            case _:
                raise NotImplementedError(f"{name} {rest}")

    def at(self, path: str) -> Path:
        """Where a path of the stage is for this process."""
        return self.root / self.workdir[1:] / path if path[0] != "/" else self.root / path[1:]

    def _copy(self, root: Path, source: str, target: str) -> None:
        found, place = root / source.lstrip("/"), self.at(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(found, place)


class Builder:
    """Builds in a folder, within the mount namespace of a process."""

    def __init__(self, holder: int, folder: Path) -> None:
        self._enter = ("nsenter", f"--mount=/proc/{holder}/ns/mnt")
        self._folder = folder
        self._seen = Path(f"/proc/{holder}/root")
        """Its root, for this process."""
        self._mount("-t", "tmpfs", "tmpfs", str(folder))

    def build(self, checkout: Path) -> Stage:
        """The last stage of the checkout's Dockerfile."""
        context = self._folder / "context"
        sources = {"": self._outside(context)}
        for file in in_context(checkout):
            place = sources[""] / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / file, place)
        stage = None
        for name, rest in instructions((checkout / "Dockerfile").read_text()):
            if name == "FROM":
                image, _, alias = rest.partition(" AS ")
                assert image.startswith("python:")
                stage = self._base(alias or "final")
                sources[alias] = stage.root if alias else sources[""]
            elif stage is not None:
                stage.follow(name, rest, sources)
        assert stage is not None
        return stage

    def seal(self, stage: Stage) -> None:
        """Makes a container of it: all is read-only but /tmp and the volumes."""
        root = f"/{stage.root.relative_to(self._seen)}"
        self._mount("-t", "tmpfs", "tmpfs", f"{root}/tmp")
        for volume in stage.volumes:
            self._mount("--bind", root + volume, root + volume)
        for place in (root, f"{root}/usr/local"):
            self._mount("-o", "remount,bind,ro", place)

    def added(self, alias: str) -> int:
        """How many bytes a stage has that its base image has not."""
        written = self._outside(self._folder / alias / "written").rglob("*")
        return sum(file.lstat().st_size for file in written if not file.is_dir())

    def _base(self, alias: str) -> Stage:
        folder = self._folder / alias
        root = folder / "root"
        self._overlay("/", folder, "", root)
        self._overlay(sys.base_prefix, folder, "usr-local", root / "usr/local")
        for kernel in ("/dev", "/proc"):
            self._mount("--rbind", kernel, f"{root}{kernel}")
        for compiled in (self._outside(root) / "usr/local/lib").rglob("__pycache__"):
            shutil.rmtree(compiled)
        subprocess.run(["chroot", str(self._outside(root)), "ldconfig"], check=True)  # has its libpython found
        return Stage(self._outside(root))

    def _overlay(self, lower: str, folder: Path, name: str, place: Path) -> None:
        upper, work = folder / "written" / name, folder / "work" / name
        for made in (upper, work, place):
            self._outside(made).mkdir(parents=True, exist_ok=True)
        self._mount("-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay", str(place))

    def _mount(self, *arguments: str) -> None:
        subprocess.run([*self._enter, "mount", *arguments], check=True)

    def _outside(self, path: Path) -> Path:
        return self._seen / path.relative_to("/")


@contextmanager
def builder(folder: Path) -> Iterator[Builder]:
    """A builder that works in an empty folder, and leaves it so."""
    with subprocess.Popen(["unshare", "--mount", "sleep", "infinity"]) as holder:
        try:
            while Path(f"/proc/{holder.pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink():
                time.sleep(0.01)
            yield Builder(holder.pid, folder)
        finally:
            holder.kill()
