"""tests/conftest.py: a tool that is missing skips a test on a desk and fails it in CI."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).parents[1] / "conftest.py"


def outcomes(pytester: pytest.Pytester, test: str) -> dict[str, int]:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile("import pytest\n" + test)
    return pytester.runpytest().parseoutcomes()


@pytest.fixture(autouse=True)
def _no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


SKIPS = [
    pytest.param("@pytest.mark.skipif(True, reason='needs wrk')\ndef test(): ...", {"errors": 1}, id="by a marker"),
    pytest.param("def test(): pytest.skip('needs wrk')", {"failed": 1}, id="in the test"),
    pytest.param(
        "@pytest.fixture\ndef wrk(): pytest.skip('needs wrk')\ndef test(wrk): ...",
        {"errors": 1},
        id="in a fixture",
    ),
    pytest.param("pytest.skip('needs wrk', allow_module_level=True)\ndef test(): ...", {"errors": 1}, id="the module"),
]


@pytest.mark.parametrize(("test", "in_ci"), SKIPS)
def test_a_missing_tool_skips(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, test: str, in_ci: dict[str, int]
) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert outcomes(pytester, test) == {"skipped": 1}
    monkeypatch.setenv("CI", "true")
    assert outcomes(pytester, test) == in_ci


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        pytest.param("def test(): pytest.skip('only on macOS')", {"skipped": 1}, id="another reason"),
        pytest.param("@pytest.mark.xfail(reason='needs wrk')\ndef test(): 1 / 0", {"xfailed": 1}, id="xfail"),
        pytest.param("def test(): ...", {"passed": 1}, id="a test that passes"),
    ],
)
def test_everything_else_is_as_it_was_in_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, test: str, expected: dict[str, int]
) -> None:
    monkeypatch.setenv("CI", "true")
    assert outcomes(pytester, test) == expected
