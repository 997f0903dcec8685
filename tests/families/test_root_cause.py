"""The error of an engine's other process, found in what it printed."""

from __future__ import annotations

import pytest

from tracereplay.engines.toy.family import TOY
from tracereplay.engines.vllm.family import VLLM

DEAD = "EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause."
FAILED = (
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
)
WARNED = "(MainProcess pid=1) WARNING 11-26 22:08:42 [base.py:380] "
WORKER = "(Worker_TP1 pid=29) ERROR 11-26 22:08:42 [multiproc_executor.py:1063] "
CORE = "(EngineCore pid=27) ERROR 11-26 22:08:43 [core.py:1512] "
BEGINS = "Traceback (most recent call last):"
LOG = [
    "Loading safetensors checkpoint shards:   0% Completed | 0/1",
    f"{WARNED}{BEGINS}",
    f"{WARNED}ValueError: Tokenizer not available",
    f"\x1b[0;36m{WORKER}\x1b[0mWorkerProc hit an exception.",
    f"{WORKER}{BEGINS}",
    f'{WORKER}  File "attention.py", line 7, in forward',
    f"{CORE}EngineCore encountered a fatal error.",
    f"{WORKER}    run()",
    f"{WORKER}",
    f"{WORKER}RuntimeError: Unexpected head dim size, 32",
    f"{CORE}{BEGINS}",
    f"{CORE}RuntimeError: Worker failed with error 'Unexpected head dim size', please check the stack trace above",
]


@pytest.mark.parametrize("error", [DEAD, FAILED])
def test_the_first_error_of_another_process_is_the_cause(error: str) -> None:
    cause = VLLM.root_cause(error, LOG)
    assert cause is not None
    assert (cause.error, cause.process) == ("RuntimeError: Unexpected head dim size, 32", "Worker_TP1")
    assert cause.lines == (
        BEGINS, '  File "attention.py", line 7, in forward', "    run()", "",
        "RuntimeError: Unexpected head dim size, 32",
    )  # fmt: skip


def test_a_core_that_prints_without_a_level_is_read() -> None:
    lines = [f"(EngineCore_DP0 pid=5) {BEGINS}", "(EngineCore_DP0 pid=5) KeyError: 'lm_head'"]
    cause = VLLM.root_cause(DEAD, lines)
    assert cause is not None
    assert (cause.error, cause.process) == ("KeyError: 'lm_head'", "EngineCore_DP0")


def test_an_error_of_the_process_itself_has_no_other_cause() -> None:
    assert VLLM.root_cause("ValueError: max_model_len is too large", LOG) is None


def test_nothing_is_made_up_where_no_other_process_said_why() -> None:
    assert VLLM.root_cause(DEAD, LOG[:4] + LOG[-2:]) is None
    assert TOY.root_cause(DEAD, LOG) is None
