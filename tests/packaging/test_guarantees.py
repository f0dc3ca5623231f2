"""docs/guarantees.md names tests that there are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[^`]+)`", GUARANTEES)))


def test_every_promise_has_a_test() -> None:
    rows = [
        line for line in GUARANTEES.splitlines() if line.startswith("|") and not re.match(r"\|(-|.*shown by)", line)
    ]
    assert len(rows) > 30
    assert [row for row in rows if "`tests/" not in row] == []


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_is_there(name: str) -> None:
    path, _, test = name.partition("::")
    definitions = ast.parse((ROOT / path).read_bytes()).body
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert test in {node.name for node in definitions if isinstance(node, kinds)}
