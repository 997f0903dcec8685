"""Taps inside CUDA graphs, on `stand_in.graphs` and a device whose copies are late."""

import contextlib
import ctypes
import gc
import os
import sys
import tempfile
import weakref
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
sys.path.insert(0, str(Path(__file__).parent / "stand_in"))

import numpy as np
import torch
import triton
import triton.language as tl
from late_device import LateDevice
from stand_in import graphs
from unit_runner import run

from tracereplay.errors import Unsupported
from tracereplay.event import Site, make_rows
from tracereplay.hooks import captures, taps
from tracereplay.recorder import arena
from tracereplay.recorder import graphs as recorder
from tracereplay.recorder.choosing import Choice
from tracereplay.recorder.frames import Frame
from tracereplay.recorder.graph_feeding import GraphFeeding
from tracereplay.recorder.options import KERNEL, GraphOptions, Options
from tracereplay.recorder.protocol import Descriptor
from tracereplay.recorder.session import Session
from tracereplay.recorder.staged import Rehearsals, Staged
from tracereplay.recorder.written import DeclaredWrites
from tracereplay.replayer.own_errors import cancelled
from tracereplay.trace.reader import SegmentReader

torch.cuda.CUDAGraph, torch.cuda.graph = graphs.Graph, graphs.capture
graphs.PYTHON.update({"tracereplay::feed": taps._feed, "tracereplay::observe": taps._observe})
WIDTH = 8
SEEDS = range(2)


class Norm(torch.nn.Module):
    """Adds to the residual in place, as engines' kernels do, and returns both."""

    def forward(self, x, residual):
        residual.add_(x)
        return residual / (residual.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt(), residual


class Halve(torch.nn.Module):
    """Halves its input, and zeroes its second argument without returning it."""

    def forward(self, x, scratch):
        scratch.zero_()
        return x / 2


class Model(torch.nn.Module):
    """Three operators, two of which write in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Linear(WIDTH, WIDTH)
        self.norm = Norm()
        self.halve = Halve()

    def forward(self, x):
        scratch = torch.ones_like(x)
        y, residual = self.norm(self.first(x), x * 2)
        return self.halve(y, scratch) + residual


class Chain(torch.nn.Module):
    """Operators each of which takes what the one before it returned, once ``change`` has seen that."""

    def __init__(self, change=None, length=2):
        super().__init__()
        torch.manual_seed(3)
        self.change = change
        for number in range(length):
            self.add_module(f"link{number}", torch.nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        for link in self.children():
            x = link(x)
            if self.change is not None:
                self.change(x)
        return x


@triton.jit
def _add_one(x_ptr, n, BLOCK: tl.constexpr = 32):  # noqa: N803
    at = tl.arange(0, BLOCK)
    tl.store(x_ptr + at, tl.load(x_ptr + at, mask=at < n) + 1, mask=at < n)


LIBRARY = torch.library.Library("units", "DEF")  # whose schemas declare no write
LIBRARY.define("launch(Tensor x) -> ()")
LIBRARY.impl("launch", lambda x: _add_one[(1,)](x, x.numel()), "CPU")
LIBRARY.define("quietly(Tensor x) -> ()")
LIBRARY.impl("quietly", lambda x: x.numpy().__iadd__(1) is None or None, "CPU")


class Rig:
    """A tapped model, its graphs by their number of rows, and the session that records them."""

    def __init__(self, seed=0, sizes=(1, 2, 4), options=None, leave=(), tapped=True, model=Model):
        self.model = model().eval()
        self.device = LateDevice(seed)
        self.session = session = Session(0, self.device)
        for name, module in self.model.named_children():
            slot = taps.slot_of(name)
            session.sites.append(Site(name, type(module).__name__, slot, role="norm" if name == "norm" else ""))
            if name not in leave:
                taps.tap(module, slot, {"forward": module.forward})
        session.graphs = recorder.GraphRecorder(
            session, self.device, max(sizes), options or GraphOptions(), cancelled, session.sites
        )
        taps.listen(session)
        captures.watch_captures(session.graphs if tapped else None)
        self.graphs = {}
        with torch.inference_mode():
            self.static = torch.zeros(max(sizes), WIDTH)
            self.forward(max(sizes))  # tells how much memory there must be
            for rows in sorted(sizes, reverse=True):
                self.forward(rows)  # warm-up
                self.graphs[rows] = self.capture(rows)
        captures.watch_captures(session.graphs)

    def forward(self, rows):
        with self.session.forward(rows):
            return self.model(self.static[:rows])

    def capture(self, rows):
        """What replays a forward of so many rows, and where its result is."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self.forward(rows)
        return graph.replay, out

    def step(self, x, *, first=0, eager=False, requests=None):
        """One step of as many real rows as ``x`` has; padding is what an earlier batch left there.

        Args:
            requests: whose rows they are; -1: of one that is not recorded.
        """
        real = len(x)
        padded = min(rows for rows in self.graphs if rows >= real)
        requests = requests or [0] * real
        rows = make_rows([(request, 0, first + i) for i, request in enumerate(requests)])
        self.session.begin_step(rows, others=requests.count(-1))
        with torch.inference_mode():
            self.static[:real] = x
            if eager:
                result = self.model(self.static[:real].clone())
            else:
                replay, out = self.graphs[padded]
                replay()
                result = out[:real].clone()
        self.session.end_step()
        return result

    def record(self, xs, replacement=None, eager=False, options=None, requests=None):
        """The results of a pass of these steps, and what was recorded."""
        path = Path(tempfile.mkdtemp()) / "record-rank0.seg"
        self.session.begin_pass(path, {}, replacement, options or Options(codec=0))
        firsts = np.cumsum([0, *map(len, xs)])
        results = [
            self.step(x, first=int(first), eager=eager, requests=None if requests is None else requests[i])
            for i, (x, first) in enumerate(zip(xs, firsts, strict=False))
        ]
        summary = self.session.end_pass()
        assert summary["errors"] == {}, summary
        return results, list(SegmentReader(path).steps())


class Rows:
    """A `Replacement` that has values by slot, side, number and row position."""

    def __init__(self, golden, injected=None):
        self.golden, self.injected, self.feeds, self.steps = golden, injected, injected is None, 0

    def takes(self, slot):
        return any(slot == of for of, _, _ in self.golden)

    def stands_for(self, slot, index, inputs):
        return (index,)

    def rows_for(self, rows_of):
        self.steps += 1

    def _found(self, slot, side, index, rows):
        values = self.golden.get((slot, side, index), {})
        return values, np.array([int(r[2]) in values for r in rows])

    def rows(self, slot, side, index, rows, like, inputs=None):
        values, known = self._found(slot, side, index, rows)
        if not known.any():
            return None
        given = like.clone()
        for i, row in enumerate(rows):
            if known[i]:
                value = values[int(row[2])]
                if not self.feeds:
                    value = cancelled(like[i], self.injected[slot, side, index][int(row[2])], value)
                given[i] = value
        return given

    def lay_in(self, slot, side, index, rows, hosts, inputs):
        values, known = self._found(slot, side, index, rows)
        for i, row in enumerate(rows):
            if known[i]:
                hosts[0][i] = values[int(row[2])]
                if not self.feeds:
                    hosts[1][i] = self.injected[slot, side, index][int(row[2])]
        return known if known.any() else None


def _batches(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, WIDTH, generator=generator) for size in sizes]


def _tensor(value):
    return torch.frombuffer(bytearray(value.load()), dtype=getattr(torch, value.dtype)).view(value.shape)


def _contents(steps):
    """All that was recorded, by step, operator, side and number."""
    found = {}
    for step in steps:
        for call in step.calls:
            sides = {"in": call.inputs, "out": call.outputs}
            for side, values in sides.items():
                for index, value in enumerate(values):
                    found[step.number, call.site, side, index] = _tensor(value)
            for index, value in call.written.items():
                found[step.number, call.site, "after", index] = _tensor(value)
    return found


def _same(one, other):
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    for key, value in one.items():
        assert value.shape == other[key].shape, (key, value.shape, other[key].shape)
        assert torch.equal(value, other[key]), key


def _golden_of(steps, scale=1.0):
    """What was recorded, as `Rows` takes it; floats only."""
    found = {}
    for step in steps:
        for call in step.calls:
            for side, rows, values in (("in", call.rows_in, call.inputs), ("out", call.rows_out, call.outputs)):
                for index, value in enumerate(values):
                    by_row = found.setdefault((taps.slot_of(call.site), side, index), {})
                    for row, x in zip(rows, _tensor(value), strict=True):
                        by_row[int(row[2])] = x * scale
    return found


def what_a_graph_records_is_what_runs_eagerly():
    """Steps of every padding, two in flight; and the results are those without taps."""
    for seed in SEEDS:
        xs = _batches(3, 4, 1, 2, 3, 1, seed=seed)
        rig = Rig(seed)
        in_graphs, steps = rig.record(xs)
        eagerly, plain = rig.record(xs, eager=True)
        assert [len(s.rows) for s in steps] == [3, 4, 1, 2, 3, 1]
        _same(_contents(steps), _contents(plain))
        assert ("after", 1) in {key[2:] for key in _contents(steps)}, "what an operator wrote in place is missing"
        bare = Model().eval()
        with torch.inference_mode():
            for one, other, x in zip(in_graphs, eagerly, xs, strict=True):
                assert torch.equal(one, other)
                assert torch.equal(one, bare(x))


def only_the_rows_of_chosen_requests_leave_a_graph():
    """They are those of a recording of everything, and neither the others nor padding reach the host."""
    requests = [[0, -1, -1], [-1], [-1, 1, -1, 2], [0, -1], [1, 2]]
    for seed in SEEDS:
        for leave in ((), ("norm",)):
            batches = _batches(*map(len, requests), seed=seed)
            whole_rig = Rig(seed, leave=leave, options=GraphOptions("nothing"))
            _, everything = whole_rig.record(batches)
            rig = Rig(seed, leave=leave, options=GraphOptions("nothing"))
            choice = Options(codec=0, choice=Choice(marked=True))
            results, chosen = rig.record(batches, options=choice, requests=requests)
            plain, _ = Rig(seed, leave=leave).record(batches, eager=True)
            assert all(torch.equal(x, y) for x, y in zip(results, plain, strict=True))
            kept = [step for step in range(len(requests)) if max(requests[step]) >= 0]
            whole, found = _contents(everything), _contents(chosen)
            for number, step in enumerate(kept):
                at = [i for i, request in enumerate(requests[step]) if request >= 0]
                mine = {key[1:]: x for key, x in found.items() if key[0] == number}
                theirs = {key[1:]: x[at] for key, x in whole.items() if key[0] == step}
                _same(mine, theirs)
                assert chosen[number].rows[:, 0].tolist() == [requests[step][i] for i in at]
            assert [step.company for step in chosen] == [(2, 2, 0), (2, 2, 1), (1, 1, 0), None]
            assert rig.device.bytes < whole_rig.device.bytes * 0.7


def one_copy_a_step_and_nobody_waits():
    """However many tensors there are; the sums of a step's waits are the device's to take."""
    rig = Rig()
    rig.device.copies = rig.device.host_waits = 0
    rig.session.begin_pass(Path(tempfile.mkdtemp()) / "a-rank0.seg", {}, None, Options(codec=0))
    for number, x in enumerate(_batches(3, 3)):
        rig.step(x, first=3 * number)
    assert (rig.device.copies, rig.device.host_waits) == (2, 0), (rig.device.copies, rig.device.host_waits)
    rig.session.end_pass()


def an_engine_that_is_let_go_of_takes_its_memory_with_it():
    rig = Rig()
    xs = _batches(2, 3)
    before, _ = rig.record(xs)
    held = weakref.ref(rig.session.graphs)
    rig.session.let_go()
    gc.collect()
    assert held() is None
    for x, result in zip(xs, before, strict=True):
        assert torch.equal(rig.step(x), result)  # its graphs run on all the same
    other = Rig()
    rig.session.let_go()  # again, which is another engine's business no more
    assert captures._told is other.session.graphs


def golden_rows_are_fed_within_a_graph_and_only_then():
    """Known rows are given, unknown and padded ones left alone; afterwards nothing is."""
    for seed in SEEDS:
        xs = _batches(3, 4, 2, seed=seed)
        rig = Rig(seed)
        plain, steps = rig.record(xs)
        golden = _golden_of(steps, scale=1.5)
        for values in golden.values():
            del values[1], values[5]  # two rows that golden does not have
        inside, outside = Rows(golden), Rows(golden)
        fed, injected = rig.record(xs, inside)
        fed_eagerly, expected = rig.record(xs, outside, eager=True)
        assert inside.steps == outside.steps == len(xs), "once a step it is told which rows that has"
        _same(_contents(injected), _contents(expected))
        for one, other, without in zip(fed, fed_eagerly, plain, strict=True):
            assert torch.equal(one, other)
            assert not torch.equal(one, without), "nothing was fed"
        calls = [c for s in injected for c in s.calls]
        assert [c.fed for c in calls] == [c.fed for s in expected for c in s.calls]
        assert any(c.fed for c in calls)
        again, _ = rig.record(xs)
        for one, other in zip(again, plain, strict=True):
            assert torch.equal(one, other), "a mask stayed set"


def own_errors_are_cancelled_within_a_graph():
    """Bit for bit what the same arithmetic gives outside of one."""
    xs = _batches(3, 4, 2)
    rig = Rig()
    _, steps = rig.record(xs)
    rows = Rows(_golden_of(steps, scale=1.25), _golden_of(steps))
    inside, traced = rig.record(xs, rows)
    outside, expected = rig.record(xs, rows, eager=True)
    _same(_contents(traced), _contents(expected))
    for one, other in zip(inside, outside, strict=True):
        assert torch.equal(one, other)


RECORDED = GraphOptions("nothing")


def _staged_bytes(rig, rows):
    """How many bytes go to the host in a step of so many rows."""
    before = rig.device.bytes
    rig.record(_batches(rows))
    return rig.device.bytes - before


def what_arrives_as_it_was_returned_is_staged_once():
    """Eight operators have sixteen tensors, nine of which differ; without a warm-up all are copied."""
    tensor = arena.aligned(4 * WIDTH * 4)
    rig = Rig(options=RECORDED, model=lambda: Chain(length=8))
    assert _staged_bytes(rig, 4) == 9 * tensor, _staged_bytes(rig, 4) / tensor
    xs = _batches(3, 4, 1, 2)
    _same(_contents(rig.record(xs)[1]), _contents(rig.record(xs, eager=True)[1]))
    with _broken(Rehearsals, "keep", lambda *_: None):
        rig = Rig(options=RECORDED, model=lambda: Chain(length=8))
        assert _staged_bytes(rig, 4) == 16 * tensor, _staged_bytes(rig, 4) / tensor


def what_is_fed_is_staged_as_often_as_it_is_seen():
    """What golden gives is not what was returned."""
    rig = Rig(model=lambda: Chain(length=8))
    assert _staged_bytes(rig, 4) == 16 * arena.aligned(4 * WIDTH * 4)


def what_changed_on_the_way_is_staged_again():
    """By a schema, by a launch, and by what nobody declares, which the warm-up shows."""

    def check(change):
        rig, xs = Rig(options=RECORDED, model=lambda: Chain(change)), _batches(3, 1)
        _same(_contents(rig.record(xs)[1]), _contents(rig.record(xs, eager=True)[1]))

    trusting = _broken(Rehearsals, "same", lambda *_: True)
    unseeing = _broken(recorder, "watching_writes", lambda writes: contextlib.nullcontext())
    for change in (lambda x: x.add_(1), torch.ops.units.launch, lambda x: x[1:].add_(1)):
        with trusting:
            check(change)  # writes are seen
        with unseeing:
            check(change)  # bytes are compared
        with trusting, unseeing:
            assert _error(AssertionError, lambda change=change: check(change))
    check(torch.ops.units.quietly)
    with trusting:
        assert _error(AssertionError, lambda: check(torch.ops.units.quietly))


def what_is_written_under_another_name_is_forgotten():
    """Engines make tensors of the same memory that do not keep it; what lies elsewhere is known as before."""
    frame, x, y = Frame(4), torch.ones(4, WIDTH), torch.ones(4, WIDTH)
    places = [Descriptor("float32", (4, WIDTH), (WIDTH, 1), 0, 128, frame.storage(z), 0) for z in (x, y)]

    def known():
        return [frame.staged.find(z, place) is not None for z, place in zip((x, y), places, strict=True)]

    for z, place in zip((x, y), places, strict=True):
        frame.staged.add(z, Staged(place, (1, "out", 0, 0)))
    assert known() == [True, True]
    frame.staged.written(torch.ones(1))
    assert known() == [True, True]
    frame.staged.written(
        torch.frombuffer((ctypes.c_char * 4).from_address(x.data_ptr() + 64), dtype=torch.float32)
    )
    assert known() == [False, True]
    other = graphs.weak(y)
    assert frame.staged.find(other, places[1]._replace(storage=frame.storage(other))) is None
    frame.staged.within = 1
    assert known() == [False, False], "what is under way may be writing to it"


class Broken(Rig):
    """Its norm runs between two graphs, on memory that stays, as engines run attention."""

    def capture(self, rows):
        first, last, model = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph(), self.model
        y, normed = torch.zeros(rows, WIDTH), torch.zeros(rows, WIDTH)
        residual, scratch = torch.zeros(rows, WIDTH), torch.ones(rows, WIDTH)
        x = self.static[:rows]

        def between():
            for place, x in zip((normed, residual), model.norm(y, residual), strict=True):
                place.copy_(x)

        with self.session.forward(rows):
            with torch.cuda.graph(first):
                y.copy_(model.first(x))
                residual.copy_(x * 2)
            between()
            with torch.cuda.graph(last):
                scratch.fill_(1)
                out = model.halve(normed, scratch) + residual

        def replay():
            first.replay()
            between()
            last.replay()

        return replay, out


def operators_between_graphs_are_recorded_without_padding():
    """They run on what graphs padded; what they are fed, and what they write, too."""
    for options in (RECORDED, None):
        rig, xs = Broken(options=options), _batches(3, 4, 1)
        results, steps = rig.record(xs)
        expected, plain = rig.record(xs, eager=True)
        _same(_contents(steps), _contents(plain))
        for one, other in zip(results, expected, strict=True):
            assert torch.equal(one, other)
    golden = _golden_of(steps, scale=1.5)
    fed, injected = rig.record(xs, Rows(golden))
    fed_eagerly, expected = rig.record(xs, Rows(golden), eager=True)
    _same(_contents(injected), _contents(expected))
    for one, other in zip(fed, fed_eagerly, strict=True):
        assert torch.equal(one, other)


def what_is_not_chosen_is_not_captured():
    """Sites are chosen when an engine starts; a pass keeps no more than that."""
    rig = Rig(options=GraphOptions("nothing", sites=("norm",), sides=("out",)))
    _, steps = rig.record(_batches(3, 2))
    assert {key[1:] for key in _contents(steps)} == {("norm", "out", 0), ("norm", "out", 1)}
    whole = Rig(options=GraphOptions("nothing"))
    assert rig.session.graphs.memory.needed < whole.session.graphs.memory.needed / 3
    given = Rows({(taps.slot_of("first"), "out", 0): {0: torch.ones(WIDTH)}})
    assert "captured its CUDA graphs to be recorded" in _error(
        Unsupported, lambda: whole.record(_batches(3), given)
    )


def areas_are_no_larger_than_said_and_have_room_behind_graphs():
    """The device has the graphs' area and two of the usual size, however large the graphs; a step is one copy."""
    kept, arena.SIZE = arena.SIZE, 1 << 12
    try:
        rig = Rig()
        sizes = []
        area = rig.device.area
        rig.device.area = lambda size: (sizes.append(size), area(size))[1]
        rig.device.copies = 0
        _, steps = rig.record(_batches(*[4] * 8))
        assert len(steps) == 8
        assert max(sizes, default=0) <= arena.SIZE, sizes
        assert rig.device.copies == 8
    finally:
        arena.SIZE = kept


def what_a_call_wrote_is_its_own_and_that_of_the_calls_around_it():
    """Not that of the call before it, nor that of a call within which it runs."""
    writes, mine, theirs = DeclaredWrites(), torch.zeros(3), torch.zeros(3)
    with writes.collected():
        mine.add_(1)
        with writes.collected():
            theirs.add_(1)
        assert (writes.to(mine), writes.to(theirs)) == (False, True)
    assert (writes.to(mine), writes.to(theirs)) == (True, True)
    with writes.collected():
        mine + theirs
    assert (writes.to(mine), writes.to(theirs)) == (False, False)


def compiled_functions_within_a_graph_stay_compiled():
    """What counts the writes of a captured call must not keep Dynamo from compiling what it calls."""
    calls = []

    def backend(module, inputs):
        calls.append(len(calls))
        return module.forward

    @torch.compile(backend=backend)
    def double(x):
        return x * 2

    with DeclaredWrites().collected():
        double(torch.ones(3))
    assert calls == [0], "it was run without its compiler"


def memory_that_holds_some_graphs_only_is_said():
    """The larger ones have as much as fits, and every recording says what is missing."""
    needed = Rig(options=GraphOptions("nothing")).session.graphs.memory.needed
    rig = Rig(options=GraphOptions("nothing", memory=needed // 2))
    _, steps = rig.record(_batches(4, 1))
    said = [note for step in steps for note in step.notes if "TRACEREPLAY_GRAPH_MEMORY" in note]
    assert len(said) == 1, said
    assert "graphs of 4 rows" in said[0], said
    assert str(needed) in said[0], said
    kept = [key for key in _contents(steps) if key[0] == 0], [key for key in _contents(steps) if key[0] == 1]
    assert 0 < len(kept[0]) < len(kept[1]), kept


def memory_for_no_row_is_refused():
    rig = Rig(options=GraphOptions("nothing", memory=40))
    said = _error(Unsupported, lambda: rig.session.begin_pass(Path("unused"), {}, None, Options()))
    assert "does not hold one row" in said, said
    assert "TRACEREPLAY_GRAPH_MEMORY" in said, said


def kernels_in_graphs_are_refused_with_the_reason():
    model, options = torch.nn.Linear(1, 1), Options(level=KERNEL)
    said = _error(Unsupported, lambda: Rig().session.begin_pass(Path("unused"), {}, None, options, model))
    assert "enforce_eager" in said, said


def a_graph_from_before_the_taps_is_noticed():
    rig = Rig(tapped=False)
    _, steps = rig.record(_batches(3, 3))
    notes = [note for step in steps for note in step.notes]
    assert sum("captured before" in note for note in notes) == 1, notes
    assert any("norm did not run" in note for note in notes), notes


def an_operator_without_a_tap_in_the_graph_is_noticed():
    rig = Rig(leave=("norm",))
    _, steps = rig.record(_batches(3))
    assert any("norm did not run" in note for note in steps[0].notes), steps[0].notes


def a_padded_row_that_is_recorded_is_caught():
    """By the check that the other units make: with the trimming taken away it fails."""
    kept = recorder.GraphRecorder._record

    def untrimmed(self, step, frame, *rest):
        frame.rows, rows = -1, frame.rows
        try:
            kept(self, step, frame, *rest)
        finally:
            frame.rows = rows

    _fails(_compare_with_eager, recorder.GraphRecorder, "_record", untrimmed)


def a_mask_that_is_read_too_early_is_caught():
    """What golden gives must be there before the graph begins."""
    kept = GraphFeeding.send

    def late(self, *given):
        self._late = given

    def replayed(self, graph, inner=recorder.GraphRecorder.replayed):
        inner(self, graph)
        if given := self._feeding.__dict__.pop("_late", None):
            kept(self._feeding, *given)

    inner = recorder.GraphRecorder.replayed
    recorder.GraphRecorder.replayed = replayed
    try:
        _fails(golden_rows_are_fed_within_a_graph_and_only_then, GraphFeeding, "send", late)
    finally:
        recorder.GraphRecorder.replayed = inner


def an_area_that_is_filled_again_too_early_is_caught():
    """A graph may begin only when what the one before it wrote has been copied out."""
    _fails(what_a_graph_records_is_what_runs_eagerly, LateDevice, "hold", lambda self, mark: None)


def a_reader_that_comes_after_the_graph_is_caught():
    """What a graph computed on the way is gone when it has ended."""
    given, late = torch.ones(2, WIDTH), []
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        with torch.cuda.graph(graph):
            x = given * 3
            late.append(graphs.weak(x))
            y = x + 1
            del x
            y += 1
        graph.replay()
    assert late[0].isnan().all(), late[0]
    assert not y.isnan().any()


def a_value_that_reaches_the_host_is_refused_in_a_capture():
    graph, x = torch.cuda.CUDAGraph(), torch.ones(3)

    def capture():
        with torch.cuda.graph(graph):
            (x * 2).sum().item()

    assert "wait" in _error(graphs.GraphError, capture)


def _error(kind, action):
    """What the error says that ``action`` raises."""
    try:
        action()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__} was raised")


def _compare_with_eager():
    rig = Rig()
    xs = _batches(3, 1)
    _same(_contents(rig.record(xs)[1]), _contents(rig.record(xs, eager=True)[1]))


def _fails(check, owner, name, broken):
    """``check`` holds, and fails with ``owner.name`` replaced."""
    check()
    with _broken(owner, name, broken):
        try:
            check()
        except AssertionError:
            return
    raise AssertionError(f"with a broken {name}, {check.__name__} still holds")


class _broken:  # noqa: N801 - a context, to be entered more than once
    """``owner.name`` is replaced."""

    def __init__(self, owner, name, broken):
        self._owner, self._name, self._other = owner, name, broken

    def __enter__(self):
        kept = getattr(self._owner, self._name)
        setattr(self._owner, self._name, self._other)
        self._other = kept

    def __exit__(self, *error):
        self.__enter__()


if __name__ == "__main__":
    run(globals())
