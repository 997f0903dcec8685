"""A family of inference engines: everything that tracereplay must know to record and replay one.

A family has two halves. This one is plain data and small functions without torch, and both sides import it. The
other runs in the engine's own processes and is named here by its modules: a driver, and what the engine loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

__all__ = ["ROLES", "Alone", "Compiled", "Family", "Operator", "Plan", "Planner", "Role", "Tensor", "Versions"]

Versions: TypeAlias = Mapping[str, "str | None"]

# What an operator does in a model, whatever its class is called.
Role: TypeAlias = Literal[
    "attention", "norm", "linear", "embedding", "rotary", "activation", "logits", "sampler", "router", "experts",
    "mixer", "convolution", "other",
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
    """A tensor as far as checking it goes: `trace.TensorBytes`, `event.Value`."""

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
        modules: that may have the class, which moved between versions; the first that has it counts. None: nobody
            outside of the family can build it.
        arguments: of its constructor; checked.
        check: raises `NotReplayable` where the operator cannot be run on these inputs.
        below: values of its first input, integers, lie from 0 to below this; None: it has no such input.
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
        plan: (class name, configuration, dtype, weights) of a recorded operator to how it is rebuilt; raises
            `NotReplayable` where it is not, or where the configuration is not one that it can have.
        libraries: modules that register kernels, imported before one of them is run.
        describe: ``module:function`` that describes a process without an engine in it, as plain data.
        templates: the package that has ``operator.j2``, the script that runs an operator again.
    """

    operators: str
    plan: Planner
    libraries: tuple[str, ...]
    describe: str
    templates: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """What an examination of an environment looks at.

    Args:
        package: the package whose shared libraries must find what they need.
        remedies: what an engine says when it fails, as patterns, and what to do; the first that is found is taken.
    """

    package: str
    remedies: tuple[tuple[str, str], ...]


class Family(Protocol):
    """One family of engines; properties are constants."""

    @property
    def name(self) -> str:
        """In the registry, in traces and on the command line: lower case."""

    @property
    def title(self) -> str:
        """As it is written in a sentence."""

    @property
    def package(self) -> str:
        """The key of its own version among an engine's versions."""

    @property
    def requirement(self) -> str | None:
        """What ``engine create`` would install, as an example; None: nothing is installed."""

    @property
    def driver(self) -> str:
        """The module that the engine's interpreter runs; it speaks the protocol of `launch.process`."""

    @property
    def entry_points(self) -> str | None:
        """What the overlay declares in the engine's environment, in the format of ``entry_points.txt``. None: the
        interpreter has tracereplay already, and no overlay is made."""

    @property
    def inspection(self) -> str:
        """A script for the engine's interpreter that prints ``INSPECTED`` and its versions as JSON."""

    @property
    def effects(self) -> str:
        """What its settings do: the text of a TOML file, which `comparator.judging.settings` explains."""

    @property
    def alone(self) -> Alone | None:
        """How its operators and kernels run without the engine; None: they do not."""

    @property
    def compiled(self) -> Compiled | None:
        """What there is to examine in its environment; None: nothing but the interpreter."""

    @property
    def brings_model(self) -> bool:
        """Whether registering an engine writes a model for it, since there are none elsewhere (`write_model`)."""

    def why_unusable(self, python: Path, versions: Versions) -> str | None:
        """Why an interpreter with these versions has no engine of this family, and what to do; None if it has."""

    def environment(self, variables: Mapping[str, str], cache: Path) -> dict[str, str]:
        """The variables with which an engine that may be recorded starts.

        Args:
            variables: those that it would have otherwise.
            cache: a directory of ours for what it compiles.
        """

    def operator(self, name: str) -> Operator:
        """What is known of an operator whose class is called ``name``."""

    def write_model(self, directory: Path) -> Mapping[str, Any]:
        """Writes a small model, to try an engine with, into a directory; returns the settings that it needs."""
