"""The recorder on a device whose copies are late: what a GPU would do, without one."""

import tempfile
import threading
import time
from pathlib import Path

import torch
from late_device import LateDevice
from unit_runner import run

from tracereplay.device import Cpu
from tracereplay.event import Site, make_rows
from tracereplay.hooks.taps import listen, slot_of, tap
from tracereplay.recorder import arena, idle
from tracereplay.recorder.options import Options
from tracereplay.recorder.session import Session
from tracereplay.replayer.golden import GoldenRows
from tracereplay.replayer.tables import RowTables
from tracereplay.trace import TraceDirectory, open_trace, segment_path
from tracereplay.trace.reader import SegmentReader

SEEDS = range(12)
SMALL = 1 << 16  # bytes of an arena in these tests


class Doubler(torch.nn.Module):
    """Doubles its input, and zeroes its second argument without returning it."""

    def forward(self, x, scratch):
        scratch.zero_()
        return x * 2


class Keeper(torch.nn.Module):
    """Changes nothing."""

    def forward(self, x, other):
        return x + other


def _session(device, *modules):
    session = Session(0, device)
    for i, module in enumerate(modules):
        slot = slot_of(f"site{i}")
        tap(module, slot, {"forward": module.forward})
        session.sites.append(Site(f"site{i}", type(module).__name__, slot))
    listen(session)
    return session


def _path(name="record"):
    return Path(tempfile.mkdtemp()) / f"{name}-rank0.seg"


def _pass(session, module, sizes, path, first=0, **options):
    """Calls ``module`` once a step with ``[size, 8]`` floats; what it wrote is checked against what was given."""
    session.begin_pass(path, {}, None, Options(codec=0, **options))
    for step, size in enumerate(sizes):
        x = torch.arange(size * 8.0).view(size, 8) + 1000 * (first + step)
        session.begin_step(make_rows([(0, 0, i) for i in range(size)]))
        module(x, torch.ones(size, 8))
        session.end_step()
    return session.end_pass()


def _check(path, sizes, first=0):
    steps = list(SegmentReader(path).steps())
    assert [len(s.rows) for s in steps] == list(sizes), [len(s.rows) for s in steps]
    for step, size in zip(steps, sizes, strict=True):
        x = torch.arange(size * 8.0).view(size, 8) + 1000 * (first + step.number)
        call = step.calls[0]
        assert torch.equal(_tensor(call.inputs[0]), x), step.number
        assert torch.equal(_tensor(call.inputs[1]), torch.ones(size, 8)), step.number
        assert torch.equal(_tensor(call.outputs[0]), 2 * x), step.number
        assert torch.equal(_tensor(call.written[1]), torch.zeros(size, 8)), step.number


def _tensor(value):
    return torch.frombuffer(bytearray(value.load()), dtype=getattr(torch, value.dtype)).view(value.shape)


def steps_of_every_size_arrive_whole_and_in_order():
    """Also those larger than an arena, and than all of them (bugs 1 and 2: hang, and steps mixed)."""
    for seed in SEEDS:
        arena.SIZE = SMALL
        module, device, path = Doubler(), LateDevice(seed, seed / len(SEEDS)), _path()
        session = _session(device, module)
        sizes = [3, 400, 3, 3, 900, 5000, 1, 1, 700, 700, 700, 700, 2, 9000, 9000, 1]
        summary = _pass(session, module, sizes, path)
        assert summary["errors"] == {}, (seed, summary)
        _check(path, sizes)


def many_calls_in_a_step_take_one_copy():
    module, device, path = Keeper(), LateDevice(1, 0.0), _path()
    session = _session(device, module)
    session.begin_pass(path, {}, None, Options(codec=0))
    waits = []
    for _ in range(6):
        session.begin_step(make_rows([(0, 0, 0)]))
        before = device.host_waits
        for _ in range(50):
            module(torch.ones(1, 8), torch.ones(1, 8))
        waits.append(device.host_waits - before)
        session.end_step()
    assert waits == [0] * 6, waits
    assert device.copies == 6, device.copies
    assert session.end_pass()["errors"] == {}


def between_passes_the_memory_of_empty_arenas_is_locked_and_no_other():
    """Bug 4: memory that stayed locked when it had been unmapped made the next pass read zeros."""
    kept, arena.SIZE = arena.SIZE, SMALL
    module, device = Doubler(), LateDevice(2)
    session = _session(device, module)
    for number in range(3):
        path, sizes = _path(), [3, 9000, 5]  # the second is larger than an arena, which grows
        assert _pass(session, module, sizes, path, first=10 * number)["errors"] == {}
        _check(path, sizes, first=10 * number)
        assert device.locked == {a._address: SMALL for a in session._process.arenas}, number
        assert session._process._staging._areas == [], number
    session._process.close()
    assert device.locked == {}
    arena.SIZE = kept


def full_arenas_are_handed_over_while_the_step_goes_on():
    """Those whose copies are complete, and nobody waits for that; half of the arenas are freed at once."""
    kept, arena.SIZE = arena.SIZE, SMALL
    for eagerness, handed, freed in ((1.0, 8, 4), (0.0, 0, 0)):
        module, device, path = Keeper(), LateDevice(6, eagerness), _path()
        session = _session(device, module)
        session.begin_pass(path, {}, None, Options(codec=0))
        writer, said = session._writer, []
        send, writer._send = writer._send, lambda kind, *rest: (said.append(kind), send(kind, *rest))  # noqa: B023
        session.begin_step(make_rows([(0, 0, i) for i in range(1000)]))
        before = device.host_waits
        for number in range(6 if eagerness else 1):  # a call's tensors take one arena and a half
            module(torch.full((1000, 8), float(number)), torch.full((1000, 8), -1.0))
        assert eagerness or device.host_waits == before  # where the writer has all arenas, it is waited for
        assert (said.count("tensors"), said.count("release")) == (handed, freed), said
        session.end_step()
        assert session.end_pass()["errors"] == {}
        (step,) = SegmentReader(path).steps()
        for number, call in enumerate(step.calls):
            assert torch.equal(_tensor(call.outputs[0]), torch.full((1000, 8), number - 1.0)), number
    arena.SIZE = kept


def what_cannot_be_locked_is_said():
    """Bug 5: an ignored code."""

    class Mean(LateDevice):
        def lock(self, address, size):
            return "4096 bytes of host memory could not be page-locked (CUDA error 2)"

        def unlock(self, address):
            pass

    module, path = Doubler(), _path()
    summary = _pass(_session(Mean(3), module), module, [3], path)
    assert summary["errors"] == {}
    _check(path, [3])
    assert any("page-locked" in note for note in next(iter(SegmentReader(path).steps())).notes)


def an_argument_that_is_not_written_is_not_taken_for_written():
    """Bug 6: the arena was compared before the copy had arrived."""
    module, path = Keeper(), _path()
    session = _session(LateDevice(4, 0.0), module)
    _pass(session, module, [3] * 4, path)
    for step in SegmentReader(path).steps():
        assert step.calls[0].written == {}, step.calls[0].written


def dropping_ends_when_there_is_room_again():
    """Bug 3: once a step was dropped, all were. How soon there is room is the machine's affair."""
    pause, idle.PAUSE = idle.PAUSE, 3600.0  # the engine's own thread has to do it
    try:
        for seed in SEEDS:
            arena.SIZE = SMALL
            module, device, path = Doubler(), LateDevice(seed, 0.2), _path()
            session = _session(device, module)
            session.begin_pass(path, {}, None, Options(codec=0, when_behind="drop"))
            step, kept, ends = 0, 0, time.monotonic() + 20
            while step < 60 or (kept < 5 and time.monotonic() < ends):
                size = 900 if step < 20 else 2
                dropped = session._dropped
                session.begin_step(make_rows([(0, 0, i) for i in range(size)]))
                module(torch.full((size, 8), float(step)), torch.ones(size, 8))
                session.end_step()
                kept = kept + 1 if session._dropped == dropped else 0
                step += 1
                time.sleep(0.002)
            summary = session.end_pass()
            assert summary["errors"] == {}, (seed, summary)
            steps = list(SegmentReader(path).steps())
            recorded = [s.number for s in steps]
            assert len(recorded) + summary["dropped"] == step, (seed, recorded, summary)
            assert recorded[-5:] == list(range(step - 5, step)), (seed, recorded, step)
            for found in steps:
                assert (_tensor(found.calls[0].inputs[0]) == found.number).all(), (seed, found.number)
    finally:
        idle.PAUSE = pause


def a_step_that_is_given_up_takes_nothing_with_it():
    """Bug 7: arenas were free while copies into them ran, and steps before were thrown away."""
    for seed in SEEDS:
        arena.SIZE = SMALL
        module, device, path = Doubler(), LateDevice(seed, 0.1), _path()
        session = _session(device, module)
        session.begin_pass(path, {}, None, Options(codec=0))
        kept = []
        for step in range(20):
            size = 900 if step % 5 == 3 else 4
            session.begin_step(make_rows([(0, 0, i) for i in range(size)]))
            module(torch.full((size, 8), float(step)), torch.ones(size, 8))
            if step % 4 != 1:
                session.end_step()
                kept.append(float(step))
        assert session.end_pass()["errors"] == {}, seed
        found = [_tensor(s.calls[0].inputs[0])[0, 0].item() for s in SegmentReader(path).steps()]
        assert found == kept, (seed, found, kept)


def a_stop_between_waking_and_forgetting_is_not_forgotten():
    """The idle thread forgets what woke it before it works; a stop may come just then, and must end it."""
    waiting = idle.IdleThread(lambda: False)

    class Late(threading.Event):
        def clear(self):
            waiting._stopped.set()
            self.set()
            super().clear()

    kept, waiting._woken = waiting._woken, Late()
    kept.set()  # it waits on the old one
    waiting._woken.set()
    waiting._thread.join(10)
    assert not waiting._thread.is_alive()


def an_idle_engine_has_handed_everything_over():
    """Bug 8: the last two steps waited for a next one."""
    module, device, path = Doubler(), LateDevice(5, 1.0), _path()
    session = _session(device, module)
    session.begin_pass(path, {}, None, Options(codec=0))
    device._eagerness = 0.0
    for step in range(3):
        session.begin_step(make_rows([(0, 0, 0)]))
        module(torch.full((1, 8), float(step)), torch.ones(1, 8))
        session.end_step()
    device._eagerness = 1.0  # the device goes on; the engine has nothing to do
    ends = time.monotonic() + 10
    while session._handover.waiting and time.monotonic() < ends:
        time.sleep(0.01)
    assert session._handover.waiting == 0
    session.end_pass()
    assert threading.active_count() == 1, threading.enumerate()


TAPS = 3 * 4  # of four operators, each with two inputs and an output


def _injected(device, sizes, unknown=()):
    """Feeds what another session recorded; returns what was computed in each step, and the device's work for it.

    Args:
        device: where it is fed.
        sizes: rows of each step.
        unknown: steps of which the last row is none of golden's.
    """
    golden, modules = TraceDirectory(Path(tempfile.mkdtemp()) / "golden.trace", {}), [Keeper() for _ in range(4)]
    session = _session(LateDevice(6), *modules)
    firsts = [sum(sizes[:step]) for step in range(len(sizes))]

    def steps(values, places):
        for first, size, last in zip(firsts, sizes, places, strict=True):
            session.begin_step(make_rows([(0, 0, first + i) for i in range(size - 1)] + [(0, 0, last)]))
            uploads, waits = device.uploads, device.host_waits
            x = values[first : first + size].clone()
            for module in modules:
                x = module(x, torch.ones(size, 8))
            yield x, device.uploads - uploads, device.host_waits - waits
            session.end_step()

    given = torch.arange(sum(sizes) * 8.0).view(-1, 8)
    known = [first + size - 1 for first, size in zip(firsts, sizes, strict=True)]
    session.begin_pass(segment_path(golden.path, "record", 0), {}, None, Options(codec=0))
    list(steps(given, known))
    assert session.end_pass()["errors"] == {}
    golden.complete()
    session.device = device
    tables = RowTables(open_trace(golden.path), "record", {}, session.sites, 0, 1, device)
    session.begin_pass(_path(), {}, GoldenRows(tables), Options(codec=0))
    places = [place + 1000 * (step in unknown) for step, place in enumerate(known)]
    found = list(steps(torch.zeros_like(given), places))
    assert session.end_pass()["errors"] == {}
    for (x, _, _), first, size, step in zip(found, firsts, sizes, range(len(sizes)), strict=True):
        real = size - (step in unknown)
        assert torch.equal(x[:real], given[first : first + real] + 4), step
        assert torch.equal(x[real:], torch.full((size - real, 8), 4.0)), step
    return found


def golden_rows_go_to_the_device_in_one_copy_a_step():
    """From the second step on, when it is known who asks; nobody waits. What is asked for besides is sent, too."""
    found = _injected(LateDevice(7, 0.0), [5, 1, 1, 3, 2, 2])
    assert [uploads for _, uploads, _ in found] == [TAPS, 1, 1, 1, 1, 1], found
    assert not any(waits for _, _, waits in found), found
    found = _injected(LateDevice(8), [3, 2, 2, 2], unknown=(2, 3))  # which row is none of golden's, once
    assert [uploads for _, uploads, _ in found] == [TAPS, 1, 2, 1], found


def golden_rows_are_copied_once_where_computing_waits_for_them():
    """On a CPU: a tap's rows are gathered when it asks, and what is gathered is what the operator takes."""

    class Counting(Cpu):
        uploads = host_waits = 0
        pieces = ()

        def pinned(self, shape, dtype):
            self.pieces += (shape,)
            return super().pinned(shape, dtype)

    device = Counting()
    _injected(device, [5, 1, 2])
    assert device.pieces == tuple((size, 8) for size in (5, 1, 2) for _ in range(TAPS)), device.pieces


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(globals())
