"""Which requests, rows and steps are recorded, on a CPU and on a device whose copies are late."""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))

import torch
from late_device import LateDevice
from unit_runner import run

from tracereplay.device import Cpu
from tracereplay.engines.vllm.guest.numbering import NOBODY, Numbering, client_names
from tracereplay.engines.vllm.guest.sampling import mark_of
from tracereplay.engines.vllm.guest.speculation import Batch, Ends, Verification
from tracereplay.event import Site, make_rows
from tracereplay.hooks.taps import listen, slot_of, tap
from tracereplay.recorder.choosing import Choice
from tracereplay.recorder.options import Options
from tracereplay.recorder.selection import Kept, Selection
from tracereplay.recorder.session import Session
from tracereplay.trace.reader import SegmentReader

WIDTH = 6
ALL = Choice(marked=True)


class Adds(torch.nn.Module):
    """Adds to its second argument in place, and returns it beside a result of its own."""

    def forward(self, x, residual):
        residual.add_(x)
        return residual * 2, residual


class Clears(torch.nn.Module):
    """Writes to an argument that it does not return."""

    def forward(self, x, scratch):
        scratch.copy_(x)
        return x + 1


class Turned(torch.nn.Module):
    """Takes positions ``[3, rows]``, and a table that has no rows."""

    def forward(self, x, positions, table):
        return x * positions[0].unsqueeze(1) + table.sum()


class Picks(torch.nn.Module):
    """Takes all rows and returns some."""

    def forward(self, x, at):
        return x[at]


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.adds, self.clears, self.turned, self.picks = Adds(), Clears(), Turned(), Picks()

    def forward(self, x, positions, at):
        y, residual = self.adds(x, x * 3)
        z = self.clears(y, torch.ones_like(y)) + residual
        return self.picks(self.turned(z, positions, torch.ones(7, 7)), at)


def _recorded(steps, choice, device=None, sampled=()):
    """What a pass of these steps (their rows) records; ``sampled`` are rows from which a token comes."""
    session, model = Session(0, device or Cpu()), Model()
    for name, module in model.named_children():
        tap(module, slot_of(name), {"forward": module.forward})
        session.sites.append(Site(name, type(module).__name__, slot_of(name)))
    listen(session)
    path = Path(tempfile.mkdtemp()) / "record-rank0.seg"
    session.begin_pass(path, {}, options=Options(codec=0, choice=choice))
    with torch.inference_mode():
        for keys in steps:
            rows = make_rows(keys)
            session.begin_step(rows, others=len({key[2] for key in keys if key[0] < 0}))
            last = rows[-2:]
            session.set_rows(slot_of("picks"), rows, last)
            x = torch.tensor([[100.0 * key[0] + key[2]] * WIDTH for key in keys])
            positions = torch.tensor([[float(key[2]) for key in keys]] * 3)
            model(x, positions, torch.arange(len(keys))[-2:])
            at = [i for i, key in enumerate(keys) if key[0] >= 0]
            tokens = torch.tensor([keys[i][2] for i in at])
            session.sampled([keys[i] for i in at], tokens, tokens, None)
            session.end_step()
    summary = session.end_pass()
    assert summary["errors"] == {}, summary
    return list(SegmentReader(path).steps())


def _values(step):
    return {
        (call.site, side, index): (value.shape, value.numpy().reshape(-1).tolist())
        for call in step.calls
        for side, index, value in call.values()
    }


OTHERS = [(-1, 0, 7), (0, 0, 4), (-1, 0, 8), (1, 0, 2), (1, 0, 3), (-1, 0, 9)]


def rows_of_chosen_requests_are_what_they_are_alone():
    """Contiguous rows and scattered ones, along dimension 0 and 1, written in place and not."""
    for device in (Cpu, lambda: LateDevice(1)):
        for keys in (OTHERS, OTHERS[1:2] + OTHERS[:1], OTHERS[3:], OTHERS[:2], OTHERS[:4]):
            steps = [OTHERS, keys, keys]  # by the first one is known how positions lie, of three rows, too
            mixed = _recorded(steps, ALL, device())
            alone = _recorded([[key for key in step if key[0] >= 0] for step in steps], ALL, device())
            for one, other in zip(mixed, alone, strict=True):
                mine, theirs = _values(one), _values(other)
                for key, found in theirs.items():
                    if key[0] == "picks" or key == ("turned", "in", 2):
                        continue  # which rows are picked, and a table, are not the same
                    assert mine[key] == found, (keys, key, mine[key], found)
                assert mine["turned", "in", 2][0][0] == 0, "a tensor whose rows cannot be told must not be kept"
                assert (one.rows == other.rows).all()


def a_step_without_a_chosen_request_is_none():
    steps = _recorded([[(-1, 0, 1), (-1, 0, 2)], [(0, 0, 0)], [(-1, 0, 1)], [(-1, 0, 2)], OTHERS], ALL)
    assert [step.number for step in steps] == [0, 1]
    assert [step.company for step in steps] == [(0, 0, 1), (3, 3, 2)]
    assert [s.key.position for s in steps[1].sampled] == [4, 2, 3]


def positions_are_kept_and_tokens_of_all():
    keys = [(0, 0, p) for p in range(6)]
    steps = _recorded([keys[:4], keys[4:5], keys[5:]], Choice(tokens=(1, 3)))
    assert [len(step.calls) for step in steps] == [4, 0, 0]
    assert [len(step.sampled) for step in steps] == [4, 1, 1]
    assert [step.rows[:, 2].tolist() for step in steps] == [[0, 1, 2, 3], [4], [5]]
    calls = {call.site: call for call in steps[0].calls}
    assert calls["adds"].rows_in[:, 2].tolist() == [1, 2]
    assert calls["picks"].rows_out[:, 2].tolist() == [2]
    assert calls["picks"].outputs[0].shape == (1, WIDTH)
    assert all(not step.notes or "did not run" not in " ".join(step.notes) for step in steps)


def every_third_step_has_operators():
    steps = _recorded([[(0, 0, p)] for p in range(7)], Choice(every=3))
    assert [bool(step.calls) for step in steps] == [True, False, False, True, False, False, True]
    assert all(len(step.sampled) == 1 for step in steps)
    assert [step.census is None for step in steps] == [True] * 7


def rejected_rows_are_told_as_they_are_in_the_end():
    """A verification of drafts marks rows in place when their calls were recorded."""
    rows = make_rows([(-1, 0, 5), (0, 0, 3), (0, 0, 4)])
    found = Selection(ALL, rows, Cpu())
    assert found.of(rows).places.tolist() == [1, 2]
    rows[2, 2] = -1 - 4
    assert found.of(rows).rows().tolist() == [[0, 0, 3], [0, 0, -5]]
    assert found.own().tolist() == [[0, 0, 3], [0, 0, -5]]


def drafts_of_others_are_neither_rejected_nor_kept():
    batch = Batch(others=1)
    batch.add(-1, 0, range(4, 7), (8, 9), discarded=False, ends=Ends(9, frozenset()))
    batch.add(0, 0, range(10, 13), (5, 6), discarded=False, ends=Ends(9, frozenset()))
    found = Verification(batch, {})
    found.settle(torch.tensor([[8, 7, -1], [5, 3, -1]], dtype=torch.int32), 100)
    assert found.kept() == [3, 4]
    assert found.rows.tolist() == [[-1, 0, 4], [-1, 0, 5], [-1, 0, 6], [0, 0, 10], [0, 0, 11], [0, 0, -13]]
    selection = Selection(ALL, found.rows, Cpu())
    assert selection.own().tolist() == [[0, 0, 10], [0, 0, 11], [0, 0, -13]]


def padding_and_several_rows_for_each_are_told_apart():
    rows = make_rows([(-1, 0, 0), (0, 0, 1), (-1, 0, 2), (1, 0, 3)])
    found = Selection(ALL, rows, Cpu())
    padded = torch.arange(8).unsqueeze(1)
    assert found.take(padded, rows).flatten().tolist() == [1, 3]  # the step's first tensor tells
    assert found.take(torch.arange(16), rows).tolist() == [2, 3, 6, 7]
    assert found.take(torch.arange(5), rows).tolist() == []
    assert found.take(torch.tensor(3), rows).item() == 3
    kept = Kept(rows, found.of(rows).places, Cpu())
    assert kept.take(torch.arange(12).view(3, 4), 4).tolist() == [[1, 3], [5, 7], [9, 11]]


def ids_are_those_that_clients_know():
    assert client_names("1_cmpl-7f-0-3f2a9c1b") == ("cmpl-7f", "cmpl-7f-0", "7f")
    assert client_names("chatcmpl-user-12-3f2a9c1b") == ("chatcmpl-user-12", "user-12")
    assert client_names("cmpl-x-3_parallel_sample_1") == ("cmpl-x", "cmpl-x-3", "x")
    assert client_names("7-aaaaaaaa") == ("7",)


def who_is_passed_over_gets_no_number_and_is_forgotten():
    numbering = Numbering(None)
    for number in range(1000):
        assert numbering.pass_over(f"cmpl-{number}-0") == NOBODY
    assert numbering.find("cmpl-3-0") == NOBODY
    assert numbering.find("cmpl-x-0") is None
    assert numbering.number("cmpl-x-0") == (0, 0)
    assert numbering.find("cmpl-x-0") == (0, 0)
    numbering.finished(f"cmpl-{number}-0" for number in range(1000))
    assert not numbering._passed
    assert numbering.find("cmpl-3-0") is None


def marks_are_those_of_the_request():
    assert mark_of(SimpleNamespace(extra_args={"tracereplay": "record"})) == "record"
    assert mark_of(SimpleNamespace(extra_args=None)) is None
    assert mark_of(SimpleNamespace()) is None


if __name__ == "__main__":
    run(globals())
