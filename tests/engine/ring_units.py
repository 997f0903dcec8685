"""A session that keeps a ring, under an engine's interpreter: flags of logits, ends and marks, in their order."""

import tempfile
from pathlib import Path

import torch
from late_device import LateDevice
from unit_runner import run

from tracereplay.device import Cpu
from tracereplay.event import Request, RowKey, Site, make_rows
from tracereplay.hooks.taps import listen, slot_of, tap
from tracereplay.recorder.options import Options
from tracereplay.recorder.session import Session
from tracereplay.recorder.triggers import Ended
from tracereplay.trace import open_trace


class Logits(torch.nn.Module):
    """Gives what it is given."""

    def forward(self, x):
        return x * 1


def _recorded(device, nan_at, **options):
    """Thirty steps of two requests, of which the second ends with step 20, or with the NaN in its logits."""
    session, module = Session(0, device), Logits()
    slot = slot_of("logits")
    tap(module, slot, {"forward": module.forward})
    session.sites.append(Site("logits", "LogitsProcessor", slot, role="logits"))
    listen(session)
    folder = Path(tempfile.mkdtemp())
    given = {"ring": "4steps", "trigger_every": 0.0, "trigger_after": 3, **options}
    session.begin_pass(folder / "record-rank0.seg", {"rank": 0, "world": 1}, None, Options(**given))
    for step in range(30):
        requests = [0, 1] if step <= 20 else [0]
        session.begin_step(make_rows([(r, 0, step) for r in requests]))
        if step == 0:
            session.requested([Request(r, 0, (r + 5,), {}) for r in requests])
        x = torch.ones(len(requests), 64, dtype=torch.bfloat16)
        if step == nan_at:
            x[1, 7] = float("inf")
        module(x)
        tokens = torch.tensor([100 * r + step for r in requests])
        session.sampled([RowKey(r, 0, step + 1) for r in requests], tokens, tokens, None)
        session.end_step()
        if step == 20:
            session.sequences_ended([Ended(1, 0, "length", 21)])
    summary = session.end_pass()
    assert not summary["errors"], summary
    return [open_trace(path) for path in sorted(folder.glob("*.trace"))]


def _check_flags(device, **options):
    (trace,) = _recorded(device, 12, **options)
    trigger = trace.part(trace.parts[0]).meta["trigger"]
    assert (trigger["kind"], trigger["request"], trigger["position"]) == ("nonfinite", 1, 12), trigger
    steps = trace.steps("record")
    assert [step.number for step in steps] == list(range(7, 16)), [step.number for step in steps]
    tokens = {}
    for sampled in (sampled for step in steps for sampled in step.sampled):
        tokens.setdefault(sampled.key.request, []).append(sampled.token)
    assert tokens == {r: [100 * r + n for n in range(16)] for r in (0, 1)}, tokens
    return steps


def flags_of_logits_are_seen():
    steps = _check_flags(Cpu())
    assert [len(step.calls) for step in steps] == [0] + [1] * 8


def flags_of_logits_are_seen_where_copies_are_late():
    for seed in range(6):
        _check_flags(LateDevice(seed))


def logits_that_are_not_recorded_are_looked_at_all_the_same():
    for device in (Cpu(), LateDevice(1)):
        steps = _check_flags(device, sites=("something else",))
        assert not any(step.calls for step in steps)


def an_end_comes_after_the_steps_that_it_ends():
    for device in (Cpu(), *map(LateDevice, range(6))):
        (trace,) = _recorded(device, None, triggers=("finish=length",))
        trigger = trace.part(trace.parts[0]).meta["trigger"]
        assert (trigger["kind"], trigger["request"]) == ("finish", 1), trigger
        numbers = [step.number for step in trace.steps("record")]
        assert numbers == [16, 17, 18, 19, 20], numbers


if __name__ == "__main__":
    run(globals())
