"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A machine that does something else for half a second is no fault of ours.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")

# Tests that run the whole program, or a process of its own, as a user does: everything else is a unit test.
PROGRAM = (
    "cli", "environments/test_create.py", "environments/test_engine_command.py", "environments/test_fixups.py",
    "fuzz/test_fuzz.py", "launch/test_child.py", "recorder/test_faulty_disk.py", "recorder/test_writer_process.py",
    "reduction/test_reduction_by_runs.py", "toy/test_toy_family.py", "test_wheel.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here)
        if any(place.is_relative_to(part) for part in PROGRAM):
            item.add_marker("program")


@pytest.fixture(scope="module", autouse=True)
def bytecode(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hundreds of processes are started: they compile what they import once, whatever may be written beside it."""
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)  # none with -p no:cacheprovider
    place = cache.mkdir("bytecode") if cache is not None else tmp_path_factory.getbasetemp() / "bytecode"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPYCACHEPREFIX", str(place))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI no test may be skipped for want of an engine: nobody would notice that it never runs."""
    report = yield
    if os.environ.get("CI") and item.get_closest_marker("engine") and "engine" in _reason(report):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in CI, where every engine must be there: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport) -> str:
    """Why a test was skipped; empty if it was not. What else a machine may lack is allowed to skip it."""
    skipped = report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple)
    return str(report.longrepr[2]) if skipped else ""  # type: ignore[index]
