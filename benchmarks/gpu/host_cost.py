"""What a recorded tensor costs the engine's own thread, without an engine: host microseconds, on the real device.

python host_cost.py            prints one JSON object; needs torch and tracereplay on the path
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from tracereplay.device import device_of
from tracereplay.event import Site, make_rows
from tracereplay.hooks.taps import listen, slot_of, tap
from tracereplay.recorder.options import Options
from tracereplay.recorder.session import Session

CALLS = 200


class Nothing(torch.nn.Module):
    def forward(self, x, y):
        return x, y


def main():
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    modules = [Nothing() for _ in range(CALLS)]
    session = Session(0, device_of(device))
    for i, module in enumerate(modules):
        slot = slot_of(f"op{i}")
        tap(module, slot, {"forward": module.forward})
        session.sites.append(Site(f"op{i}", "Nothing", slot))
    listen(session)
    found = {"device": kind}
    for rows in (1, 64):
        tensors = [torch.randn(rows, 2048, device=device).bfloat16() for _ in range(2 * CALLS)]
        path = Path(tempfile.mkdtemp(dir="/dev/shm")) / "record-rank0.seg"
        session.begin_pass(path, {}, None, Options(codec=0))
        taps, ends, bare, copies = [], [], [], []
        for step in range(12):
            begun = time.perf_counter()
            for i, module in enumerate(modules):
                module(tensors[2 * i], tensors[2 * i + 1])
            bare.append((time.perf_counter() - begun) / CALLS * 1e6)
            session.begin_step(make_rows([(0, 0, step * rows + i) for i in range(rows)]))
            begun = time.perf_counter()
            for i, module in enumerate(modules):
                module(tensors[2 * i], tensors[2 * i + 1])
            taps.append((time.perf_counter() - begun) / (4 * CALLS) * 1e6)
            begun = time.perf_counter()
            session.end_step()
            ends.append((time.perf_counter() - begun) * 1e3)
            begun = time.perf_counter()
            for x in tensors:
                x.clone()
            copies.append((time.perf_counter() - begun) / len(tensors) * 1e6)
        summary = session.end_pass()
        found[f"rows_{rows}"] = {
            "us_a_tensor": round(statistics.median(taps[3:]), 2),
            "us_a_tensor_each": [round(t, 2) for t in taps],
            "us_an_idle_call": round(statistics.median(bare[3:]), 2),
            "us_a_clone": round(statistics.median(copies[3:]), 2),
            "ms_end_of_step": round(statistics.median(ends[3:]), 3),
            "errors": summary["errors"],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
