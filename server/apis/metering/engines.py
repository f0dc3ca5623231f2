"""Which engine there is."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from .engine_pocketsphinx import Pocketsphinx

if TYPE_CHECKING:
    from ...config import TranscriptionConfig
    from .engine import Engine
    from .workers import Workers

_NEEDS = {"openai": ("av", "openai"), "pocketsphinx": ("av", "pocketsphinx")}


def chosen(config: TranscriptionConfig) -> Literal["openai", "pocketsphinx"] | None:
    """The engine that a configuration asks for; None where what it needs is not installed."""
    name = config.engine
    if name == "auto":
        name = "pocketsphinx" if config.api_key is None else "openai"
    return name if all(map(find_spec, _NEEDS[name])) else None


def make(config: TranscriptionConfig, workers: Workers) -> Engine | None:
    """The engine that is `chosen`."""
    match chosen(config):
        case "openai":
            from .engine_openai import OpenAI

            return OpenAI(config)
        case "pocketsphinx":
            return Pocketsphinx(workers, config.timeout)
    return None
