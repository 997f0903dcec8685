"""A family of inference engines: everything that tracereplay must know to record and replay one.

A family has two halves. This one, imported by both sides, is plain data and small functions without torch. The
other runs in the engine's own processes; its modules are named here: a driver, and what the engine loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

__all__ = [
    "ROLES", "Alone", "Compiled", "Family", "Operator", "Own", "Plan", "Planner", "Role", "RootCause", "Tensor",
    "Versions",
]  # fmt: skip

Versions: TypeAlias = Mapping[str, "str | None"]

# What an operator does in a model, independent of its class name. One that is "gated" multiplies the activation of
# one half of its input by the other half: models that do so between operators have an "activation" in its place.
Role: TypeAlias = Literal[
    "attention", "norm", "linear", "embedding", "rotary", "activation", "gated", "logits", "sampler", "router",
    "experts", "mixer", "convolution", "other",
]  # fmt: skip
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Operator:
    """What is known of an operator by its class.

    Args:
        role: what it does in a model.
        formula: the float64 reference that it computes (`comparator.oracle.references`), if there is one.
    """

    role: Role
    formula: str | None = None


class Tensor(Protocol):
    """What checks need of a tensor: `trace.TensorBytes` and `event.Value` have it."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How an operator is rebuilt without its model.

    Args:
        role: what it does.
        operator: class name.
        dtype: in which it is built, torch's name.
        modules: those that may define the class, which moved between versions, in order. None: it cannot be built
            outside the family.
        arguments: of its constructor, validated.
        check: raises `NotReplayable` where the operator cannot be run on these inputs.
        below: its first input has integers from 0 to below this; None: it has no such input.
    """

    role: Role
    operator: str
    dtype: str
    modules: tuple[str, ...]
    arguments: Mapping[str, Any]
    check: Callable[[Sequence[Tensor | None]], None]
    below: int | None = None


Planner: TypeAlias = Callable[[str, Mapping[str, Any], str, Mapping[str, Tensor]], Plan]


@dataclass(frozen=True, slots=True)
class Alone:
    """How recorded calls of a family's operators and kernels are run in isolation.

    Args:
        operators: the module that runs operators, a handler of `alone.child`.
        plan: maps (class name, configuration, dtype, weights) of a recorded operator to how it is rebuilt; raises
            `NotReplayable` if it is not supported, or its configuration is invalid.
        libraries: modules that register custom kernels, imported before one is run.
        describe: ``module:function`` that describes a process without an engine, as plain data.
        templates: the package that has ``operator.j2``, the script that runs an operator again.
    """

    operators: str
    plan: Planner
    libraries: tuple[str, ...]
    describe: str
    templates: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """What ``engine doctor`` checks in an environment.

    Args:
        package: the package whose shared libraries must be loadable.
        remedies: patterns of an engine's error messages, and what to do; the first match counts.
    """

    package: str
    remedies: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class RootCause:
    """The error of another of an engine's processes, which ended the engine.

    Args:
        error: its last line, as ``KeyError: 'x'``.
        process: that process's name in the log.
        lines: its traceback.
    """

    error: str
    process: str
    lines: tuple[str, ...]


class Own(Protocol):
    """A module by which engines are recorded that a user builds in Python, in this process or below it."""

    def is_built(self) -> bool:
        """Whether there is an engine in this process already, which cannot be recorded any more."""

    def is_declared(self) -> bool:
        """Whether processes that an engine starts find by themselves what records there."""

    def begin(self) -> None:
        """Engines that are built from now on are recorded as the environment says."""

    def end(self) -> None:
        """They are not any more; what this process has noted is written. The environment is still the same."""


class Family(Protocol):
    """One family of engines; properties are constants."""

    @property
    def name(self) -> str:
        """In the registry, in traces and on the command line: lower case."""

    @property
    def title(self) -> str:
        """The name in sentences."""

    @property
    def package(self) -> str:
        """The key of its own version among an engine's versions."""

    @property
    def requirement(self) -> str | None:
        """An example of what ``engine create`` installs; None: nothing is installed."""

    @property
    def driver(self) -> str:
        """The module that the engine's interpreter runs; it implements `engines.protocol`."""

    @property
    def entry_points(self) -> str | None:
        """The entry points that the overlay declares, in the format of ``entry_points.txt``. None: the interpreter
        has tracereplay already and needs no overlay."""

    @property
    def own(self) -> str | None:
        """The module that is `Own`; None: its engines are recorded in processes that are started for it only."""

    @property
    def inspection(self) -> str:
        """A script for the engine's interpreter that prints ``INSPECTED`` and its versions as JSON."""

    @property
    def effects(self) -> str:
        """What its settings affect: the text of a TOML file, see `comparator.judging.settings`."""

    @property
    def bug_report(self) -> str | None:
        """The form in which its maintainers take bug reports: a Jinja template in Markdown of ``title``,
        ``description`` and ``environment`` (see `bundle.readme`). None: there is none of its own."""

    @property
    def alone(self) -> Alone | None:
        """How its operators and kernels run without the engine; None: not supported."""

    @property
    def compiled(self) -> Compiled | None:
        """What to check in its environment; None: only the interpreter."""

    @property
    def brings_model(self) -> bool:
        """Whether registering an engine writes a model for it (`write_model`), since there are none elsewhere."""

    def why_unusable(self, python: Path, versions: Versions) -> str | None:
        """Why an interpreter with these versions has no engine of this family, and what to do; None if it has."""

    def environment(self, variables: Mapping[str, str], cache: Path) -> dict[str, str]:
        """The environment variables of an engine that may be recorded.

        Args:
            variables: its variables otherwise.
            cache: our directory for what it compiles.
        """

    def taps_environment(self, variables: Mapping[str, str], cache: Path) -> dict[str, str]:
        """Of the variables of `environment`, those without which it cannot be recorded, whoever starts it."""

    def operator(self, name: str) -> Operator:
        """What is known of the operator class ``name``."""

    def ranks_environment(self, described: Mapping[str, Any], ranks: int) -> Mapping[str, str]:
        """Environment variables that an engine needs to run on that many tensor-parallel ranks of one machine.

        Args:
            described: how an engine of this kind describes itself (``device``, ``settings``).
            ranks: at least 1.
        """

    def other_graphs(
        self, described: Mapping[str, Any], given: Mapping[str, Any], requests: int
    ) -> Mapping[str, Mapping[str, Any]] | str:
        """Engine arguments under which steps are padded to graphs of other sizes, and run without graphs.

        Args:
            described: how the engine describes itself (``device``, ``settings``).
            given: its arguments.
            requests: how many it is to serve at once.

        Returns:
            The arguments to change, by what that is called; or why there are none, as a sentence.
        """

    def root_cause(self, error: str, log: Iterable[str]) -> RootCause | None:
        """Why an engine failed, where ``error`` only says that another of its processes did; None if not known.

        Args:
            error: what the driver raised.
            log: the lines that the engine printed.
        """

    def write_model(self, directory: Path) -> Mapping[str, Any]:
        """Writes a small model for trying an engine; returns the settings that it needs."""
