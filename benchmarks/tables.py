"""The measurements as Markdown tables that read well in a terminal too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["mega", "of_case", "of_kernels", "spread", "table"]


def of_case(title: str, case: Mapping[str, Any]) -> str:
    """All tables of one model and batch size."""
    tables = (_times(case["times"]), _parts(case["parts"]), _bytes(case["bytes"]), _writing(case["writing"]))
    return "\n\n".join((f"### {title}", *tables, _opening(case["opening"]))) + "\n"


def of_kernels(title: str, case: Mapping[str, Any]) -> str:
    """All tables of one model and batch size, of kernel-level recording and isolated replay."""
    rows = [
        ["and with references" if one["reference"] else "isolated replay", f"{one['executed']} of {one['calls']}",
         f"{one['calls a second']:.0f} ({one['slowest']:.0f}-{one['fastest']:.0f})"]
        for one in case["isolated"]
    ]  # fmt: skip
    speed = table(["a decode step", "calls executed", "calls a second (slowest, fastest of 5)"], rows)
    return "\n\n".join((f"### {title}", _times(case["times"]), _bytes(case["bytes"]), speed)) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    cells = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([cells[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *cells[1:]])


def _times(times: Mapping[str, Any]) -> str:
    kinds = list(next(iter(times.values()))["ratio"])
    rows = [[kind, *(_ratio(t["ratio"][kind]) for t in times.values())] for kind in kinds]
    plain = ["plain, ms", *(f"{1000 * t['plain seconds']['median']:.1f}" for t in times.values())]
    return table(["ratio to plain (quartiles)", *times], [plain, *rows])


def _ratio(found: Mapping[str, float]) -> str:
    return f"{found['median']:.3f} ({found['q1']:.3f}-{found['q3']:.3f})"


def _parts(parts: Mapping[str, Any]) -> str:
    head = ["outside the generation", "open", "close (wait for the writer)", "compare"]
    rows = [[kind, *(f"{1000 * p[x]:.0f} ms" for x in ("begin", "end", "compare"))] for kind, p in parts.items()]
    return table(head, rows)


def _bytes(found: Mapping[str, Any]) -> str:
    rows = [
        [name, mega(b["trace"]), f"{mega(b['values'])}: {b['values'] / b['trace']:.2f}x",
         f"{mega(b['values and parameters'])}: {b['values and parameters'] / b['trace']:.1f}x"]
        for name, b in found.items()
    ]  # fmt: skip
    return table(["bytes", "trace", "dump of every input and output", "the same with parameters"], rows)


def _writing(found: Mapping[str, Any]) -> str:
    rows = []
    for name in ("codec", "no codec", "os.write"):
        t = found[name]
        given = found["bytes"] if name != "os.write" else found["unique"]
        speeds = (given / t["cpu"], found["unique"] / t["cpu"], found["unique"] / t["wall"])
        rows.append([name, mega(given), mega(t["disk"]), *(f"{speed / 1e9:.2f} GB" for speed in speeds)])
    head = ["writing", "given", "on disk", "given a CPU second", "unique a CPU second", "unique a second"]
    return table(head, rows)


def _opening(o: Mapping[str, Any]) -> str:
    seconds = f"{1000 * o['open seconds']:.1f} ms + {1000 * o['read seconds']:.1f} ms"
    row = [mega(o["trace"]), seconds, mega(o["bytes read"]), f"{o['call']}, {o['call bytes'] / 1e6:.3f} MB"]
    return table(["one call out of a trace of", "open + read", "bytes read", "the call"], [row])


def mega(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
