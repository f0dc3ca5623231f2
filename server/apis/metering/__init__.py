"""Metering: a desktop app spends prepaid tokens with a license key (contracts/metering.md)."""

from __future__ import annotations

from .api import api

__all__ = ["api"]
