"""Every entry of vLLM's settings table is about something that an engine states or takes: each can be listed."""

from __future__ import annotations

import json
import subprocess
import sys
from fnmatch import fnmatchcase

import pytest
from engine_support import find_engine

from tracereplay.comparator.judging.settings import WEIGHTS_UPDATE
from tracereplay.engines.vllm.family import VLLM
from tracereplay.sampling import SAMPLING
from tracereplay.trace import Trace

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.engine

_ARGUMENTS = """
import dataclasses, json
from vllm.engine.arg_utils import EngineArgs
print("FOUND" + json.dumps([field.name for field in dataclasses.fields(EngineArgs)]))
"""


def arguments(name: str) -> set[str]:
    """The arguments that an engine takes."""
    python = find_engine(name).python
    said = subprocess.run([python, "-c", _ARGUMENTS], capture_output=True, text=True, check=True).stdout
    return set(json.loads(said.partition("FOUND")[2]))


def test_every_entry_of_the_settings_table_can_fire(golden_v0: Trace, golden_v1: Trace) -> None:
    taken = arguments("v0") | arguments("v1")
    stated = {"weights", "device", WEIGHTS_UPDATE, "cudagraph_mode", "compilation_mode"}
    for trace in (golden_v0, golden_v1):
        facts = trace.run.engine_facts
        assert len(facts("resolved")) > 40
        stated |= {*facts("settings"), *facts("resolved")} | {f"versions.{name}" for name in facts("versions")}
    entries = tomllib.loads(VLLM.effects)["setting"]
    silent = []
    for entry in entries:
        name = entry["name"]
        kind, _, rest = name.partition(".")
        if kind in ("environment", "model_config"):  # a user's, and a checkpoint's
            continue
        names = {f"sampling.{known}" for known in SAMPLING} if rest and kind == "sampling" else stated | taken
        if not any(fnmatchcase(known, name) for known in names):
            silent.append(name)
    assert silent == []


def test_what_one_engine_resolves_does_not_change_from_start_to_start(golden_v1: Trace) -> None:
    """Nor does it tell where anything lies on the machine."""
    text = json.dumps(golden_v1.run.engine_facts("resolved"))
    assert "0x" not in text
    assert "/root" not in text
    assert "/tmp" not in text
    assert str(golden_v1.run.engine_facts("resolved").get("generation_config")) == "auto"
