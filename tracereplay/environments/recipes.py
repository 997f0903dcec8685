"""What each engine package needs in addition to installation, read from ``recipes.toml``.

A recipe is data: a package, a range of its versions, and what must be overridden, added, set or fixed for an
engine of that kind to start. The file explains its own keys.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tracereplay.engines.known import EXAMPLE
from tracereplay.environments.fixups import KINDS, Fixup, SystemLibrary
from tracereplay.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

__all__ = ["Recipe", "known_recipes", "parse_requirements", "pinned_version", "read_recipes", "recipe_for"]

RECIPES = Path(__file__).with_name("recipes.toml")


@dataclass(frozen=True)
class Recipe:
    """How to build one kind of engine; ``recipes.toml`` says what each field means."""

    name: str
    package: str
    versions: SpecifierSet
    why: str
    refuse: str = ""
    python: SpecifierSet = field(default_factory=SpecifierSet)
    overrides: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    libraries: tuple[SystemLibrary, ...] = ()
    fixups: tuple[Fixup, ...] = ()

    def matches(self, package: str, version: Version) -> bool:
        """Whether this recipe is for that version of that package."""
        same = canonicalize_name(self.package) == canonicalize_name(package)
        return same and self.versions.contains(version, prereleases=True)


@functools.cache
def known_recipes() -> tuple[Recipe, ...]:
    """The recipes that come with tracereplay, in the order in which they are tried."""
    return read_recipes(RECIPES)


def read_recipes(path: Path) -> tuple[Recipe, ...]:
    """Read a recipe file.

    Raises:
        UsageError: it is not TOML, a key is unknown or missing, or a range or requirement is not one.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"The recipe file {path} cannot be read: {error}.") from error
    _refuse_unknown_keys(document, {"recipe"}, f"{path}")
    return tuple(
        _recipe(entry, f"{path}, recipe {number}") for number, entry in enumerate(document.get("recipe", []), 1)
    )


def recipe_for(requirements: Iterable[Requirement], recipes: Iterable[Recipe] | None = None) -> Recipe | None:
    """The first recipe that matches one of the requirements, or None if none is needed or known.

    Raises:
        UsageError: a package that has recipes is not pinned to one version (which recipe, and which engine
            next month?), or the recipe says that this version cannot work.
    """
    recipes = known_recipes() if recipes is None else tuple(recipes)
    for requirement in requirements:
        mine = [r for r in recipes if canonicalize_name(r.package) == canonicalize_name(requirement.name)]
        if not mine or requirement.url:
            continue
        version = pinned_version(requirement)
        if version is None:
            raise UsageError(
                f"'{requirement}' does not specify a version. Pin one, as in '{requirement.name}==0.18.1', "
                "so that the engine is the same when it is built again."
            )
        recipe = next((r for r in mine if r.matches(requirement.name, version)), None)
        if recipe is not None and recipe.refuse:
            raise UsageError(f"{requirement.name} {version} cannot be used: {recipe.refuse}.")
        if recipe is not None:
            return recipe
    return None


def parse_requirements(texts: Iterable[str]) -> tuple[Requirement, ...]:
    """Read requirements as ``pip install`` takes them: ``name==1.2``, ``name @ file:///a.whl``.

    Raises:
        UsageError: one of them is not a requirement.
    """
    return tuple(_requirement(text, "on the command line") for text in texts)


def pinned_version(requirement: Requirement) -> Version | None:
    """The one version that ``name==X`` allows, or None if the requirement is anything else."""
    specifiers = list(requirement.specifier)
    if len(specifiers) != 1 or specifiers[0].operator not in ("==", "==="):
        return None
    text = specifiers[0].version
    return None if text.endswith(".*") else Version(text)


def _recipe(entry: Mapping[str, Any], where: str) -> Recipe:
    _check_keys(entry, Recipe, where)
    values = dict(entry)
    values["versions"] = _specifiers(entry["versions"], where)
    values["python"] = _specifiers(entry.get("python", ""), where)
    for key in ("overrides", "requirements"):
        values[key] = tuple(str(_requirement(text, where)) for text in entry.get(key, ()))
    values["libraries"] = tuple(_library(one, where) for one in entry.get("libraries", ()))
    values["fixups"] = tuple(_fixup(one, where) for one in entry.get("fixups", ()))
    _check_strings(entry.get("env", {}), where)
    return Recipe(**values)


def _fixup(entry: Mapping[str, Any], where: str) -> Fixup:
    options = dict(entry)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise UsageError(f"{where}: there is no fix-up of kind {kind!r}; known are {', '.join(sorted(KINDS))}.")
    _check_keys(options, KINDS[kind], f"{where}, fix-up {kind}")
    return KINDS[kind](**_tuples(options))


def _library(entry: Mapping[str, Any], where: str) -> SystemLibrary:
    _check_keys(entry, SystemLibrary, f"{where}, libraries")
    return SystemLibrary(**_tuples(entry))


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def _check_keys(entry: Mapping[str, Any], into: type, where: str) -> None:
    """Refuse keys that the dataclass does not have, and name those that it needs."""
    known = fields(into)
    _refuse_unknown_keys(entry, {f.name for f in known}, where)
    needed = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(needed - set(entry)):
        raise UsageError(f"{where}: the key {missing[0]!r} is missing.")


def _refuse_unknown_keys(entry: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(entry) - known):
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}.")


def _check_strings(env: Mapping[str, Any], where: str) -> None:
    for key, value in env.items():
        if not isinstance(value, str):
            raise UsageError(f"{where}: the environment variable {key} must be text, not {value!r}.")


def _specifiers(text: str, where: str) -> SpecifierSet:
    try:
        return SpecifierSet(text)
    except InvalidSpecifier as error:
        raise UsageError(f"{where}: {text!r} is not a version range such as '>=0.27.1,<0.33'.") from error


def _requirement(text: str, where: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise UsageError(
            f"{text!r} {where} is not a requirement such as '{EXAMPLE}' or 'name @ file:///wheel'."
        ) from error
