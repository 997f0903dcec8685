"""Installed engines: built with uv from recipes, registered by name, examined when they fail."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracereplay.environments.create import Created, create_engine, remove_engine
    from tracereplay.environments.registry import Engine, add_engine, list_engines, load_engine
else:
    from tracereplay.lazily import imported_on_use

    __getattr__ = imported_on_use(
        __name__,
        {
            "tracereplay.environments.create": ("Created", "create_engine", "remove_engine"),
            "tracereplay.environments.registry": ("Engine", "add_engine", "list_engines", "load_engine"),
        },
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
