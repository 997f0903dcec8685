"""Installed engines: built with uv from recipes, registered by name, examined when they fail."""

from __future__ import annotations

from tracereplay.environments.create import Created, create_engine, remove_engine
from tracereplay.environments.registry import (
    Engine,
    add_engine,
    list_engines,
    load_engine,
)

__all__ = [
    "Created",
    "Engine",
    "add_engine",
    "create_engine",
    "list_engines",
    "load_engine",
    "remove_engine",
]
