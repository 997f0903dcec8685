"""The rollout numbers for people at a terminal."""

from __future__ import annotations

from rich.console import Console

from tracereplay.report.layout import Row, cell, indented, print_rows, section
from tracereplay.report.words import number, percent
from tracereplay.verdict.rollout import Rollout

__all__ = ["render"]

_QUANTITIES = {
    "raw": "raw logprobs", "scaled": "temperature-scaled logprobs", "filtered": "filtered logprobs",
    "logit": "logits", "other": "another quantity",
}  # fmt: skip


def render(found: Rollout, console: Console, *, everything: bool = False) -> None:
    """Prints ``found``: two lines, or with ``everything`` also the growth with position and length."""
    section(console, "Rollout", "  golden generates, the candidate trains: ratios candidate to golden")
    indented(
        console,
        f"{found.tokens} tokens in {found.sequences} sequences; ratio {number(found.ratio_min)} to "
        f"{number(found.ratio_max)}, {percent(found.clipped)} outside 1 +- {found.clip:g}; effective sample size "
        f"{percent(found.effective_tokens)} of tokens, {percent(found.effective_sequences)} of sequences",
    )
    indented(console, f"k1 {number(found.k1)}, k3 {number(found.k3)} nats per token{_greedy(found)}")
    if found.reported is not None and (everything or found.reported.differ):
        indented(
            console,
            f"golden reports {_QUANTITIES[found.reported.golden]}, the candidate "
            f"{_QUANTITIES[found.reported.candidate]}; raw ones differ by {number(found.reported.raw_max_diff)} "
            "at most",
        )
    if everything:
        _tables(found, console)


def _greedy(found: Rollout) -> str:
    """That k1 and k3 are not estimates, if tokens are greedy."""
    greedy = found.tokens - found.drawn
    if not greedy:
        return ""
    some = "all" if greedy == found.tokens else f"{greedy}"
    return f" ({some} tokens are greedy, for which k1 and k3 do not estimate a divergence)"


def _tables(found: Rollout, console: Console) -> None:
    d = found.abs_diff
    spread = f"mean {number(d.mean)}, median {number(d.p50)}, 90 % {number(d.p90)}, 99 % {number(d.p99)}"
    indented(console, f"logprob differences: {spread}, largest {number(d.max)} nats")
    rows = []
    for row in found.by_position:
        place = str(row.first) if row.first == row.last else f"{row.first}-{row.last}"
        rows.append(Row(list(map(cell, (place, row.tokens, number(row.mean), number(row.max))))))
    console.print()
    headers: tuple[str, ...] = ("generated positions", "tokens", "mean difference", "largest")
    print_rows(console, headers, rows, right=range(4))
    rows = []
    for line in found.by_length:
        sizes = map(number, (line.log_ratio_mean, line.log_ratio_rms, line.log_ratio_max))
        rows.append(Row(list(map(cell, (line.length, line.sequences, *sizes, percent(line.effective))))))
    console.print()
    headers = "length", "sequences", "log ratio, mean", "rms", "largest", "effective"
    print_rows(console, headers, rows, right=range(6))
