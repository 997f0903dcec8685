"""What a pass is asked for survives the way to the engine, and what cannot be meant is refused in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from tracereplay.cancellation import Cancellation
from tracereplay.engines import toy
from tracereplay.engines.request import Cancel, Feed, Inject, PassRequest, Serving
from tracereplay.engines.toy.family import TOY
from tracereplay.errors import UsageError
from tracereplay.launch import EngineProcess
from tracereplay.launch.jobs import record_pass
from tracereplay.recorder.options import Options
from tracereplay.trace import TraceDirectory, open_trace

TRACE, GOLDEN, INJECTED = Path("/traces/candidate"), Path("/traces/golden"), Path("/traces/injected")
CANCEL = Cancel(Cancellation(frozenset({"norm", "mlp"}), frozenset({("norm", 1)})), INJECTED)
ALL_GIVEN = Options("drop", 3, 1 << 20, 0, ("*norm*",), ("out",), "kernel", False, 0)


@pytest.mark.parametrize(
    "request_",
    [
        PassRequest(TRACE, "record"),
        PassRequest(TRACE, "record", options=ALL_GIVEN),
        PassRequest(TRACE, "rerun", GOLDEN),
        PassRequest(TRACE, "rerun", GOLDEN, serving=Serving(((2, 0), (1,)), "never")),
        PassRequest(TRACE, "injected", GOLDEN, Inject(), Options(level="kernel")),
        PassRequest(TRACE, "cancelled", GOLDEN, CANCEL),
        PassRequest(TRACE, "cancelled", GOLDEN, Cancel(Cancellation(everything=True), INJECTED)),
    ],
)
def test_a_request_is_the_same_on_the_other_side(request_: PassRequest) -> None:
    assert PassRequest.from_dict(json.loads(json.dumps(request_.as_dict()))) == request_


def test_options_that_say_nothing_are_the_usual_ones() -> None:
    assert Options.from_dict({}) == Options()
    assert Options.from_dict(json.loads(json.dumps(Options().as_dict()))).told() == []


def plain(fed: Feed | None = None, **changed: Any) -> dict[str, Any]:
    """A request as data, with keys changed."""
    return {**PassRequest(TRACE, "rerun", GOLDEN, fed).as_dict(), **changed}


def cancelling(**changed: Any) -> dict[str, Any]:
    return plain(feed={**plain(CANCEL)["feed"], **changed})


REQUEST, FEED = "of the pass request", "of the pass's feed"
WRONG: dict[str, tuple[Any, str]] = {
    "no object": ([], r"\[\] was given as the pass request; an object was expected\."),
    "the key of an older version": (plain(inject=True), rf"The key 'inject' {REQUEST} is unknown\."),
    "a slip": (plain(goldn=None), rf"The key 'goldn' {REQUEST} is unknown; did you mean golden\?"),
    "a number for a path": (plain(golden=3), f"'golden' {REQUEST} is 3; it must be a string, or None"),
    "no trace": ({"name": "rerun"}, rf"The key 'trace' {REQUEST} is missing\."),
    "nothing to feed from": (plain(Inject(), golden=None), "is to be fed golden's values, but has no golden"),
    "both feeds": (plain(feed={"kind": "inject", "injected": "/x"}), f"The key 'injected' {FEED} is unknown"),
    "a feed of no kind": (plain(feed={}), f"The key 'kind' {FEED} is missing"),
    "a feed of another kind": (plain(feed={"kind": "x"}), f"{FEED} is 'x'; it must be one of inject, cancel"),
    "a kind that is none": (plain(feed={"kind": ["cancel"]}), rf"{FEED} is \['cancel'\]; it must be one of"),
    "own errors of nothing": (cancelling(injected=None), f"'injected' {FEED} is None; it must be a string"),
    "an unknown selection": (cancelling(selection={"sites": []}), "'sites' of the cancellation is unknown"),
    "half an edge": (
        cancelling(selection={**Cancellation().as_dict(), "edges": [["norm"]]}),
        "'edges' of the cancellation is .*; it must be a list of pairs, each a site and the number of its input",
    ),
    "an unknown option": (plain(options={"max_step": 1}), "The key 'max_step' of .*; did you mean max_steps"),
    "a truth for a number": (plain(options={"max_steps": True}), "'max_steps' of the recording options is True"),
    "a number for a truth": (plain(options={"check_writes": 1}), "is 1; it must be true or false"),
    "an unknown level": (plain(options={"level": "all"}), "is 'all'; it must be one of operator, kernel"),
    "a request twice": (
        plain(serving={"groups": [[0, 1], [1]], "cleared": "pass"}),
        "'groups' of the pass's serving is .*; it must be lists of requests, each request once",
    ),
    "an unknown time": (plain(serving={"groups": None, "cleared": "step"}), "one of pass, group, never"),
    "an unknown side": (plain(options={"sides": ["up"]}), "it must be a list of 'in' and 'out'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_refused(name: str) -> None:
    data, words = WRONG[name]
    with pytest.raises(UsageError, match=words):
        PassRequest.from_dict(data)


def test_nothing_is_fed_without_golden() -> None:
    with pytest.raises(UsageError, match="has no golden trace"):
        PassRequest(TRACE, "injected", None, Inject())


@pytest.mark.parametrize("module", ["engines.request", "recorder.options", "cancellation", "checked"])
def test_who_asks_needs_no_torch(module: str) -> None:
    script = f"""
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "vllm"):
            raise ImportError(f"{{name}} is not to be imported here")
sys.meta_path.insert(0, NoTorch())
import tracereplay.{module}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# -- a driver ---------------------------------------------------------------------------------------------------


class Toy:
    """The toy's driver, spoken to in plain JSON."""

    def __init__(self, stdin: IO[str], stdout: IO[str]) -> None:
        self._stdin, self._stdout = stdin, stdout

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self._stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._stdin.flush()
        answer: dict[str, Any] = json.loads(self._stdout.readline())
        return answer


@contextmanager
def driver(model: Path) -> Iterator[Toy]:
    command = [sys.executable, "-m", TOY.driver]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        found = Toy(process.stdin, process.stdout)
        assert "ok" in found.ask("start", model=str(model), settings={})
        yield found


def test_a_driver_answers_an_unknown_key_with_a_sentence_and_goes_on(tmp_path: Path) -> None:
    TOY.write_model(tmp_path / "model")
    prompts = [{"prompt_token_ids": [5, 6], "sampling": {"max_tokens": 2, "temperature": 0.0}}]
    asked = PassRequest(tmp_path / "a.trace", "record").as_dict()
    TraceDirectory(tmp_path / "a.trace", {"kind": "recording"}).let_go()
    with driver(tmp_path / "model") as engine:
        assert engine.ask("generate", prompts=prompts, recording={**asked, "optoins": {}}) == {
            "error": "The key 'optoins' of the pass request is unknown; did you mean options?",
            "exit_code": 2,
            "kind": "UsageError",
        }
        assert not list((tmp_path / "a.trace").glob("*.seg"))
        assert len(engine.ask("generate", prompts=prompts, recording=asked)["ok"]["requests"]) == 1
    assert open_trace(tmp_path / "a.trace").passes == ("record",)


def test_a_pass_is_not_recorded_into_another_trace_than_the_one_at_hand(tmp_path: Path) -> None:
    class Never(EngineProcess):
        def __init__(self) -> None:
            pass

        def generate(self, *_: Any) -> dict[str, Any]:
            raise AssertionError

    directory = TraceDirectory(tmp_path / "a.trace", {"kind": "recording"})
    with pytest.raises(ValueError, match=r"b\.trace"):
        record_pass(Never(), directory, toy.workload(), PassRequest(tmp_path / "b.trace", "record"))
    directory.let_go()
