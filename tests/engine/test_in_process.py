"""The engine-side code, unit by unit, under a real engine's interpreter (it needs torch)."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
from pathlib import Path

import pytest
from engine_support import find_engine

from tracereplay.launch.process import guest_environment

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent


def names(file: str) -> list[str]:
    tree = ast.parse((HERE / file).read_text())
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"]


@functools.cache
def raised(engine: str, file: str) -> dict[str, str | None]:
    """What each unit raised under this engine's interpreter; one process for all, since torch loads slowly."""
    found = find_engine(engine)
    command = [str(found.python), str(HERE / file), *names(file)]
    done = subprocess.run(command, env=guest_environment(found), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.mark.parametrize("name", names("in_process_units.py"))
@pytest.mark.parametrize("engine", ["v0", "v1"])
def test_in_the_engines_process(engine: str, name: str) -> None:
    assert raised(engine, "in_process_units.py")[name] is None, raised(engine, "in_process_units.py")[name]


@pytest.mark.parametrize("name", names("census_units.py"))
@pytest.mark.parametrize("engine", [pytest.param("v0", marks=pytest.mark.long), "v1"])
def test_what_computes_is_seen(engine: str, name: str) -> None:
    assert raised(engine, "census_units.py")[name] is None, raised(engine, "census_units.py")[name]


@pytest.mark.parametrize("name", names("choosing_units.py"))
@pytest.mark.parametrize("engine", ["v0", "v1"])
def test_what_is_chosen_is_recorded_and_nothing_else(engine: str, name: str) -> None:
    assert raised(engine, "choosing_units.py")[name] is None, raised(engine, "choosing_units.py")[name]


@pytest.mark.parametrize("name", names("late_units.py"))
def test_on_a_device_whose_copies_are_late(name: str) -> None:
    assert raised("v1", "late_units.py")[name] is None, raised("v1", "late_units.py")[name]


@pytest.mark.parametrize("name", names("ring_units.py"))
def test_a_ring(name: str) -> None:
    assert raised("v1", "ring_units.py")[name] is None, raised("v1", "ring_units.py")[name]


@pytest.mark.parametrize("name", names("ordered_units.py"))
def test_under_orders(name: str) -> None:
    assert raised("v1", "ordered_units.py")[name] is None, raised("v1", "ordered_units.py")[name]


@pytest.mark.parametrize("name", names("graphs_units.py"))
def test_within_cuda_graphs(name: str) -> None:
    assert raised("v1", "graphs_units.py")[name] is None, raised("v1", "graphs_units.py")[name]


@pytest.mark.parametrize("name", names("triton_units.py"))
def test_kernels_written_in_triton(name: str) -> None:
    assert raised("v1", "triton_units.py")[name] is None, raised("v1", "triton_units.py")[name]
