"""What pyproject.toml asks for is what the package imports, and `make` installs exact versions of it."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
OPTIONAL = PROJECT["optional-dependencies"]
NAMESPACES = ("opentelemetry",)
"""Packages that several distributions share, which have its name before theirs."""


def required(lines: list[str]) -> list[Requirement]:
    """Of these requirements, those on others than homeport itself."""
    return [need for need in map(Requirement, lines) if need.name != "homeport"]


def imported(module: Path) -> Iterator[str]:
    """The top-level names of what a module imports anywhere in it from outside its package and the standard library."""
    for node in ast.walk(ast.parse(module.read_bytes())):
        match node:
            case ast.Import(names=names):
                full_names = [alias.name for alias in names]
            case ast.ImportFrom(module=str(name), level=0):
                full_names = [name]
            case _:
                continue
        yield from {name.partition(".")[0] for name in full_names} - sys.stdlib_module_names


def test_the_package_declares_what_it_imports() -> None:
    folders = [ROOT.joinpath(*package.split(".")[1:]) for package in PYPROJECT["tool"]["setuptools"]["packages"]]
    modules = [module for folder in folders for module in folder.glob("*.py")]
    names = {canonicalize_name(name) for module in modules for name in imported(module)}
    declared = required(
        PROJECT["dependencies"] + [need for extra, needs in OPTIONAL.items() if extra != "dev" for need in needs]
    )
    assert names == {_imported_as(canonicalize_name(need.name)) for need in declared}


def _imported_as(distribution: str) -> str:
    return next((name for name in NAMESPACES if distribution.startswith(f"{name}-")), distribution)


def test_constraints_pin_every_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert {clause.operator for pin in pins for clause in pin.specifier} == {"=="}
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    extras = OPTIONAL.values()
    for need in required([*PROJECT["dependencies"], *chain(*extras)]):
        assert pinned[canonicalize_name(need.name)] in need.specifier, need
