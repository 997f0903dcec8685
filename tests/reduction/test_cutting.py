"""What is cut out of a trace is what was there: rows, tokens, kernels, and which company they kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tracereplay.engines import toy
from tracereplay.errors import TracereplayError
from tracereplay.event import Call, Kernel, Request, RowKey, Sampled, Site, Value, flatten, make_rows
from tracereplay.trace import CallOfStep, SegmentWriter, TensorBytes, TraceDirectory, open_trace, segment_path
from tracereplay.trace.cutting import Cut, Cutter
from tracereplay.trace.kernels import Kernels
from tracereplay.trace.verify import verify

KERNELS = Path(__file__).parents[2] / "fixtures" / "tiny-llama-v0-kernels.trace"


def rows_of(call: Call) -> dict[tuple[str, int, tuple[int, ...]], bytes]:
    """Each row of each tensor."""
    found = {}
    for side, index, value in call.values():
        for key, row in zip(call.rows_of(side).tolist(), value.numpy(), strict=False):
            found[side, index, tuple(key)] = row.tobytes()
    return found


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.record(toy.workload(max_tokens=6), tmp_path_factory.mktemp("golden") / "golden.trace")


def test_all_of_it_has_the_same_steps(golden: Path, tmp_path: Path) -> None:
    with open_trace(golden) as trace:
        Cutter(trace).cut(tmp_path / "copy.trace", Cut((0, 1, 2)))
        with open_trace(tmp_path / "copy.trace") as copy:
            assert copy.results == trace.results
            for mine, theirs in zip(trace.steps("record"), copy.steps("record"), strict=True):
                assert (mine.number, mine.sampled, mine.notes) == (theirs.number, theirs.sampled, theirs.notes)
                assert [c.site for c in mine.calls] == [c.site for c in theirs.calls]
                for a, b in zip(mine.calls, theirs.calls, strict=True):
                    assert rows_of(a) == rows_of(b)
            assert {report.state for report in verify(copy)} == {"complete"}


def test_rows_are_those_of_the_requests_that_are_kept(golden: Path, tmp_path: Path) -> None:
    with open_trace(golden) as trace:
        sites = frozenset({"model.norm", "model.layers.0.mlp.act_fn"})
        Cutter(trace).cut(tmp_path / "cut.trace", Cut((0, 2), {0: 2, 2: 4}, sites, (2, 6)))
        with open_trace(tmp_path / "cut.trace") as cut:
            assert [r["token_ids"] for r in cut.results["record"]["requests"]] == [
                trace.results["record"]["requests"][0]["token_ids"][:2],
                trace.results["record"]["requests"][2]["token_ids"][:4],
            ]
            assert [p.sampling["max_tokens"] for p in cut.run.prompts] == [2, 4]
            assert [len(step.sampled) for step in cut.steps("record")] == [2, 2, 1, 1]
            seen = set()
            for mine, theirs in zip(trace.steps("record"), cut.steps("record"), strict=False):
                whole = {call.site: rows_of(call) for call in mine.calls}
                for call in theirs.calls:
                    assert call.site in sites
                    for (side, index, (request, sequence, position)), row in rows_of(call).items():
                        assert 2 <= position < 6
                        assert whole[call.site][side, index, ((0, 2)[request], sequence, position)] == row
                        seen.add((request, position))
            # Golden's prompts have five and four tokens; the row before the last token is the last one.
            assert seen == {(0, p) for p in (2, 3, 4, 5)} | {(1, p) for p in (2, 3, 4, 5)}
            # of the second prompt, three tokens in the first step and one in each of the others
            assert [step.company for step in cut.steps("record")] == [(3, 1, 0), (1, 1, 0), (1, 1, 0), (1, 1, 0)]


def tensor(array: object, dtype: str | None = None) -> TensorBytes:
    x = np.ascontiguousarray(array)
    return TensorBytes(dtype or x.dtype.name, x.shape, tuple(s // x.itemsize for s in x.strides), x.tobytes())


CENSUS = {"operators": 1, "calls": 1, "unobserved": [["m", "M", 2, 3]], "between": [], "parameters": []}


def write(
    path: Path, *steps: tuple[int, list[tuple[int, int, int]], TensorBytes, list[Request]], complete: bool = True
) -> Path:
    """A trace of one operator, whose input is the given tensor; a census is taken in the first step."""
    prompts = [{"prompt_token_ids": [1] * 4, "prompt": None, "sampling": {}} for _ in range(2)]
    run = {"kind": "recording", "workload": {"model": "m", "settings": {}, "prompts": prompts, "weights": None}}
    directory = TraceDirectory(path, run)
    writer = SegmentWriter(segment_path(path, "record", 0), {})
    writer.sites([Site("rotary", "MRotaryEmbedding", 7)])
    for number, keys, given, begun in steps:
        rows = make_rows(keys)
        call = CallOfStep(7, 0, rows, rows, {0: writer.add(given)}, {}, {})
        sampled = [Sampled(RowKey(r, 0, p + 1), 5, 5, None) for r, _, p in keys if p >= 3]
        writer.commit(number, rows, [call], sampled, [], begun, census=None if number else CENSUS)
    writer.close({})
    if complete:
        directory.complete()
    return path


def test_positions_of_a_vision_model_have_their_rows_along_the_other_dimension(tmp_path: Path) -> None:
    first = [(r, 0, p) for r in (0, 1) for p in range(4)]
    positions = np.arange(24).reshape(3, 8)
    later = np.array([[70, 71, 72], [80, 81, 82], [90, 91, 92]])  # three rows: it could be read both ways
    path = write(
        tmp_path / "golden.trace", (0, first, tensor(positions), []),
        (1, [(0, 0, 4), (1, 0, 4), (1, 0, 5)], tensor(later), []),
    )  # fmt: skip
    with open_trace(path) as trace:
        Cutter(trace).cut(tmp_path / "cut.trace", Cut((1,)))
    with open_trace(tmp_path / "cut.trace") as cut:
        one, other = (step.calls[0].inputs[0].numpy() for step in cut.steps("record"))
        assert one.tolist() == positions[:, 4:].tolist()
        assert other.tolist() == later[:, 1:].tolist()


def test_a_request_that_begins_in_a_step_without_rows_of_its_own_begins_in_the_next(tmp_path: Path) -> None:
    begun = [Request(n, 0, (1, 1, 1, 1), {}, f"id-{n}") for n in (0, 1)]
    path = write(
        tmp_path / "golden.trace", (0, [(0, 0, p) for p in range(4)], tensor(np.zeros((4, 2))), begun),
        (1, [(1, 0, p) for p in range(4)], tensor(np.ones((4, 2))), []),
    )  # fmt: skip
    with open_trace(path) as trace:
        Cutter(trace).cut(tmp_path / "cut.trace", Cut((1,)))
    with open_trace(tmp_path / "cut.trace") as cut:
        (step,) = cut.steps("record")
        assert [(r.request, r.id) for r in step.requests] == [(0, "id-1")]
        assert (step.number, step.company) == (1, (0, 0, 1))
        assert step.census is not None  # which the first step had
        assert [(c.module, c.computed) for c in step.census.unobserved] == [("m", 3)]


def test_what_is_not_complete_does_not_become_so(tmp_path: Path) -> None:
    path = write(tmp_path / "golden.trace", (0, [(0, 0, 3)], tensor(np.zeros((1, 2))), []), complete=False)
    with open_trace(path) as trace:
        Cutter(trace).cut(tmp_path / "cut.trace", Cut((0,)))
    with open_trace(tmp_path / "cut.trace") as cut:
        assert (len(cut), cut.said_complete, cut.part(("record", 0)).complete) == (1, False, True)


# -- kernels ---------------------------------------------------------------------------------------------------


def given(kernel: Kernel) -> list[object]:
    """What a kernel took and gave, tensors by their bytes."""
    found: list[object] = [kernel.name, kernel.schema, kernel.call, kernel.undeclared]
    for argument in flatten((*kernel.given, *kernel.outputs, *kernel.written.values())):
        if isinstance(argument, Value):
            found.append((argument.dtype, argument.shape, argument.strides, argument.start, argument.load()))
        else:
            found.append(argument)
    return found


def test_kernels_of_one_operator_are_kept_with_the_buffers_that_they_name(tmp_path: Path) -> None:
    site = "model.layers.1.self_attn.rotary_emb"
    with open_trace(KERNELS) as trace:
        sites = trace.sites("record")
        assert site in sites
        every = tuple(range(len(trace.run.prompts)))
        Cutter(trace).cut(tmp_path / "cut.trace", Cut(every, sites=frozenset(sites), kernels=frozenset({site})))
        with open_trace(tmp_path / "cut.trace") as cut:
            assert cut.size < trace.size
            for mine, theirs in zip(trace.steps("record"), cut.steps("record"), strict=True):
                assert [given(k) for k in theirs.kernels] == [given(k) for k in mine.kernels if k.site == site]
                assert len(theirs.kernels)
                # What shared memory still does.
                assert memory(list(theirs.kernels)) == memory([k for k in mine.kernels if k.site == site])
            first = cut.steps("record")[0].kernels
            assert isinstance(first, Kernels)
            valued = {c.name for c in first.constants if c.value is not None}
            assert all("rotary" in name or "cos" in name for name in valued)
            assert len(first.constants) > len(valued)
            assert {report.state for report in verify(cut)} == {"complete"}


def test_a_copy_has_the_same_kernels_in_the_same_memory(tmp_path: Path) -> None:
    with open_trace(KERNELS) as trace:
        Cutter(trace).cut(tmp_path / "copy.trace", Cut(tuple(range(len(trace.run.prompts)))))
        with open_trace(tmp_path / "copy.trace") as copy:
            for mine, theirs in zip(trace.steps("record"), copy.steps("record"), strict=True):
                assert [k.parent for k in mine.kernels] == [k.parent for k in theirs.kernels]
                assert [given(k) for k in mine.kernels] == [given(k) for k in theirs.kernels]
                assert versions(list(mine.kernels)) == versions(list(theirs.kernels))


def versions(kernels: list[Kernel]) -> list[tuple[int, int]]:
    """Of each tensor its memory, and how often that had been written."""
    given = (a for k in kernels for a in flatten((*k.given, *k.outputs, *k.written.values())))
    return [(value.storage, value.version) for value in given if isinstance(value, Value)]


def memory(kernels: list[Kernel]) -> list[int]:
    """Which of the kernels' tensors lay in one memory: of each the first that did."""
    values = [a for k in kernels for a in flatten((*k.given, *k.outputs)) if isinstance(a, Value)]
    first: dict[int, int] = {}
    return [first.setdefault(v.storage, n) if v.storage >= 0 else -1 for n, v in enumerate(values)]


def test_kernels_do_not_say_which_rows_they_have_so_that_steps_with_fewer_have_none(tmp_path: Path) -> None:
    with open_trace(KERNELS) as trace:
        every = tuple(range(len(trace.run.prompts)))
        Cutter(trace).cut(tmp_path / "rows.trace", Cut(every, positions=(1, None)))
        with open_trace(tmp_path / "rows.trace") as cut:
            assert [len(step.kernels) for step in cut.steps("record")] == [0] * len(cut)


# -- strangers' traces -----------------------------------------------------------------------------------------


def test_a_hostile_trace_is_cut_or_refused(tmp_path: Path) -> None:
    folder = KERNELS.parent / "hostile"
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix == ".pack" or (p / "manifest.json").exists()]
    done = 0
    for number, path in enumerate(paths):
        try:
            with open_trace(path) as trace:
                every = tuple(range(len(trace.run.prompts)))
                Cutter(trace).cut(tmp_path / str(number), Cut(every[:1], {0: 1}, positions=(0, 2)))
                done += 1
        except TracereplayError:
            continue
    assert 0 < done < len(paths)
