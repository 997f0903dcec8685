"""``__all__`` says what others may import of a module: all of it is defined, and nothing else is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from importlib import import_module

import pytest
from test_layers import MODULES

DECLARED = {
    name: [ast.literal_eval(item) for item in node.value.elts]
    for name, tree in MODULES.items()
    for node in tree.body
    if isinstance(node, ast.Assign)
    and isinstance(node.value, ast.List)
    and [target.id for target in node.targets if isinstance(target, ast.Name)] == ["__all__"]
}
# Modules without `__all__` are a package's own rooms or hold nothing for others.


def defined(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """Names at the top of a module: defined there, or imported, if only when they are asked for (`lazily`)."""
    for node in statements:
        if isinstance(node, ast.If):
            yield from defined(node.body)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))


def _is_getattr(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "__getattr__"


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_every_public_name_is_defined_and_named_once(name: str) -> None:
    names = DECLARED[name]
    assert len(set(names)) == len(names)
    assert set(names) <= set(defined(MODULES[name].body))


# Packages whose public names are imported when they are asked for.
LAZY = [name for name, tree in MODULES.items() if any(_is_getattr(node) for node in ast.walk(tree))]


@pytest.mark.parametrize("name", LAZY)
def test_names_that_are_imported_when_asked_for_are_there(name: str) -> None:
    package = import_module(name)
    for public in DECLARED[name]:
        assert hasattr(package, public), public
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = package.nothing


def test_only_public_names_are_imported() -> None:
    wrong = [
        f"{name} imports {alias.name} of {node.module}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in DECLARED
        for alias in node.names
        if alias.name not in DECLARED[node.module] and f"{node.module}.{alias.name}" not in MODULES
    ]
    assert wrong == []


def test_what_a_module_makes_public_is_all_that_others_import_of_it() -> None:
    """A module that others import from says what they may import."""
    silent = {
        node.module
        for tree in MODULES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module in MODULES
        and node.module not in DECLARED
        and any(f"{node.module}.{alias.name}" not in MODULES for alias in node.names)
    }
    assert silent == set()
