"""Imports point down only, and each side imports no more than it may.

The engine's side runs in the engine's environment; the analyst's side runs where there is no torch.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tracereplay

PACKAGE = Path(tracereplay.__file__).parent
ROOTS = {"tracereplay": PACKAGE, "tracereplay.cli": PACKAGE.parent / "cli"}

# A part may import what stands below it, never what stands beside or above.
LAYERS = (
    ("__main__",),
    ("cli", "pytest_plugin"),
    ("api",),
    ("bundle",),
    ("report",),
    ("reduction",),
    ("bisector", "calibrator", "checks", "invariance"),
    ("ray",),
    ("environments", "store"),
    ("alone",),
    ("launch",),
    ("comparator",),
    ("engines",),
    ("alone.child",),
    ("replayer", "recorder"),
    ("columns",),
    ("sitemap",),
    ("gate",),
    ("hooks", "trace"),
    ("device",),
    ("storage",),
    ("workload", "event", "verdict", "cancellation"),
    ("sampling",),
    ("checked",),
    ("errors", "dtypes", "interpreter", "jsondata", "schemas", "passes", "census", "lazily"),
)
LEVEL = {part: number for number, parts in enumerate(LAYERS) for part in parts}

ENGINE_SIDE = (
    "hooks",
    "trace",
    "device",
    "storage",
    "recorder",
    "replayer",
    "columns",
    "sitemap",
    "engines",
    "alone.child",
    "cancellation",
    "checked",
    "event",
    "workload",
    "sampling",
    "errors",
    "dtypes",
    "schemas",
    "census",
    "interpreter",
    "passes",
    "lazily",
)
ENGINE_HAS = {"tracereplay", "torch", "numpy", "safetensors", "msgpack", "zstandard", "xxhash", "vllm"}
PARTS = ("alone.child",)  # rooms within rooms that stand elsewhere
TOY = "tracereplay.engines.toy"  # the test double: it lives among the engines and runs on both sides

ANALYST_SIDE = (
    "cli", "api", "ray", "bundle", "report", "reduction", "bisector", "calibrator", "checks", "invariance",
    "environments", "store", "alone", "launch", "comparator", "columns", "sitemap", "gate", "trace", "storage",
    "workload", "event", "cancellation", "verdict", "sampling", "checked", "errors", "dtypes", "jsondata",
    "schemas", "passes", "census", "lazily",
)  # fmt: skip


# Who may name vLLM, besides documents (*.md) and its own room; whoever else does is vLLM-shaped without need.
SAYS_VLLM = {
    "tracereplay/environments/recipes.toml": "what its builds need",
    "tracereplay/alone/kernels.toml": "its kernels that may run in isolation",
    "cli/verbs.py": "the demo's line in the list of verbs",
    "cli/demo.py": "the demo compares two of its versions",
    "tracereplay/engines/known.py": "puts it among the families",
    "tracereplay/gate/gate.toml": "what a trace may ask for, in one list to be read as one",
    "cli/record.py": "a command of its is the example of what to record",
    "tracereplay/launch/own.py": "an engine of its is the example of what to build",
    "cli/choice_options.py": "how a request is marked in its bodies",
}
VLLM_ROOM = "tracereplay/engines/vllm/"
NEVER = (
    "comparator",
    "bisector",
    "calibrator",
    "invariance",
    "replayer",
    "recorder",
    "report",
    "trace",
)  # whatever the reason


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its full name."""
    found = {}
    for name, root in ROOTS.items():
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            dotted = ".".join((name, *parts)).removesuffix(".__init__")
            found[dotted] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """Full names of all that a module imports, wherever in it the import stands."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def part(name: str) -> str | None:
    """``trace`` of ``tracereplay.trace.reader``; None for the package itself and for others' packages."""
    top, _, rest = name.partition(".")
    if top != "tracereplay" or not rest:
        return None
    return next((whole for whole in PARTS if f"{rest}.".startswith(f"{whole}.")), rest.split(".")[0])


def of(parts: tuple[str, ...]) -> list[str]:
    return [name for name in MODULES if part(name) in parts]


def test_every_part_has_a_layer() -> None:
    assert {part(name) for name in MODULES} - {None} <= set(LEVEL)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name: str) -> None:
    here = part(name)
    for other in imported(name):
        there = part(other)
        if there is None or there == here or here is None:
            continue
        assert LEVEL[here] < LEVEL[there], f"{name} imports {other}, which is not below {here}"


@pytest.mark.parametrize("name", sorted(of(ENGINE_SIDE)))
def test_the_engines_side_imports_only_what_an_engine_has(name: str) -> None:
    allowed = ENGINE_HAS | set(sys.stdlib_module_names) | ({"ml_dtypes"} if name.startswith(TOY) else set())
    for other in imported(name):
        assert other.split(".")[0] in allowed, f"{name} imports {other}"
        seen = (*ENGINE_SIDE, "gate", None) if name.startswith(TOY) else (*ENGINE_SIDE, None)
        assert part(other) in seen, f"{name} imports {other}, which an engine does not see"


def test_an_engines_processes_load_neither_the_other_families_nor_what_they_need() -> None:
    waiting = [name for name in MODULES if name.startswith("tracereplay.engines.vllm.guest.")]
    loaded = set()
    while waiting:
        name = waiting.pop()
        if name in MODULES and name not in loaded and name != "tracereplay":  # whose names are imported on use
            loaded.add(name)
            waiting += [*imported(name), name.rpartition(".")[0]]
    assert "tracereplay.sitemap.matching" in loaded
    assert not {name for name in loaded if name.startswith((TOY, "tracereplay.gate", "tracereplay.engines.known"))}


@pytest.mark.parametrize("name", sorted(of(("trace", "sitemap", "storage", "event", "workload", "errors"))))
def test_what_both_sides_use_never_imports_torch(name: str) -> None:
    assert not {"torch", "vllm"} & {other.split(".")[0] for other in imported(name)}


def test_the_analysts_side_runs_without_torch() -> None:
    names = [*of(ANALYST_SIDE), TOY]
    script = f"""
import importlib, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "vllm", "transformers"):
            raise ImportError(f"{{name}} is not to be imported here")
sys.meta_path.insert(0, NoTorch())
for name in {names!r}:
    importlib.import_module(name)
sys.argv = ["tracereplay", "--help"]
importlib.import_module("tracereplay.cli.main").main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "replay" in done.stdout


def test_vllm_is_named_in_its_room_only() -> None:
    root = PACKAGE.parent
    every = (path for folder in (PACKAGE, root / "cli") for path in folder.rglob("*"))
    files = [path for path in every if path.suffix in (".py", ".toml", ".j2")]
    says = {str(p.relative_to(root)) for p in files if "vllm" in p.read_text(encoding="utf-8").lower()}
    outside = {name for name in says if not name.startswith(VLLM_ROOM)}
    assert outside == set(SAYS_VLLM)
    assert not [name for name in outside if name.split("/")[1] in NEVER]
