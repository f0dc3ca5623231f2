"""Coding sessions in tmux, seen and steered from web and native apps (contracts/sessions.md)."""

from __future__ import annotations

from .api import api

__all__ = ["api"]
