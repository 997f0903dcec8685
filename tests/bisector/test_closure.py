"""The closure check, over passes of the toy engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracereplay.bisector.closure import check_closure
from tracereplay.cancellation import Cancellation
from tracereplay.comparator.tokens.generation import read_generation
from tracereplay.engines import toy
from tracereplay.engines.toy import Flaw
from tracereplay.engines.toy.names import Naming
from tracereplay.trace import open_trace
from tracereplay.verdict import Closure


def closure(
    folder: Path,
    selection: Cancellation,
    batches: int | None,
    *,
    naming: Naming = "fused",
    flaw: Flaw | None = None,
) -> Closure:
    """With ``selection`` cancelled, in a pass whose steps hold at most ``batches`` rows.

    Args:
        naming: golden's.
        flaw: the candidate's.
    """
    golden = toy.record(toy.workload(), folder / "golden.trace", naming=naming)
    injected = toy.replay(golden, folder / "injected.trace", passes=("injected",), rounding="truncate", flaw=flaw)
    closed = toy.replay(
        golden, folder / "closed.trace", passes=("cancelled",), rounding="truncate", max_rows=batches,
        cancel=(injected, selection), flaw=flaw,
    )  # fmt: skip
    source = open_trace(golden)
    generation = read_generation(source, "record")
    return check_closure(source, open_trace(injected), (open_trace(closed), "cancelled"), generation)


def test_everything_cancelled_gives_golden_logits_back(tmp_path: Path) -> None:
    assert closure(tmp_path, Cancellation(everything=True), None) == Closure(True, None, 24)


@pytest.mark.parametrize(
    "flaw",
    [
        None,
        Flaw("model.layers.0.self_attn.qkv_proj", "scale"),  # which golden runs as three
        Flaw("model.layers.1.post_attention_layernorm", "eps"),  # which golden gives the sum
        Flaw("model.layers.1.input_layernorm", "scaled_edge", 1),  # of which golden has the sum only
        Flaw("model.layers.1.mlp.act_fn", "coarse"),  # which golden calls otherwise
    ],
)
def test_it_holds_where_golden_names_fuses_and_adds_otherwise(tmp_path: Path, flaw: Flaw | None) -> None:
    found = closure(tmp_path, Cancellation(everything=True), None, naming="split", flaw=flaw)
    assert found == Closure(True, None, 24)


def test_it_holds_over_other_batches_where_no_bit_depends_on_them(tmp_path: Path) -> None:
    """Requests reach an engine in a process of its own at any moment; that alone breaks nothing."""
    found = closure(tmp_path, Cancellation(everything=True), 4)
    assert (found.held, found.rows, found.same_batches) == (True, 24, False)


def test_the_first_place_where_it_breaks_is_named(tmp_path: Path) -> None:
    found = closure(tmp_path, Cancellation(), None)
    assert (found.held, found.same_batches) == (False, True)
    assert found.first_broken == "input 0 of model.layers.0.self_attn.qkv_proj is not what it was on golden inputs"
