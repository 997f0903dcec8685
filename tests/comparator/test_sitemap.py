"""Operators that two engines name, fuse and feed otherwise are compared all the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracereplay.comparator import compare_traces
from tracereplay.engines import toy
from tracereplay.engines.naming import SPELLINGS
from tracereplay.engines.toy import Flaw, sites
from tracereplay.engines.vllm.roles import OPERATORS
from tracereplay.event import Call, Layout, Parameter, Site, Step, Value, make_rows
from tracereplay.sitemap import SiteMap, pair_sites
from tracereplay.trace import open_trace
from tracereplay.verdict import Verdict

Judge = Callable[..., Verdict]
JOINED = {
    "model.layers.0.self_attn.qkv_proj": (
        "decoder.blocks.0.attention.query | decoder.blocks.0.attention.key | decoder.blocks.0.attention.value"
    ),
    "model.layers.1.mlp.gate_up_proj": "decoder.blocks.1.ffn.gate | decoder.blocks.1.ffn.up",
}


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording under other names, with nothing fused."""
    path = tmp_path_factory.mktemp("split") / "golden.trace"
    return toy.record(toy.workload(max_tokens=5), path, naming="split")


# Whole traces.


@pytest.mark.parametrize("options", [{}, {"tensor_parallel": 2}, {"max_rows": 3}])
def test_without_a_fault_every_operator_is_paired_and_nothing_differs(
    split: Path, judge: Judge, options: dict[str, Any]
) -> None:
    verdict = judge(of=split, **options)
    assert (verdict.verdict, verdict.reasons) == ("match", ())
    assert verdict.coverage.not_compared == ()
    assert verdict.coverage.compared_calls == verdict.coverage.golden_calls == 110
    assert {o.site for o in verdict.operators} == set(open_trace(verdict.candidate.trace).sites("injected"))
    assert {e.error_class for e in verdict.edges} == {"identical"}


def test_a_second_injected_pass_is_held_against_the_first_as_it_was_recorded(split: Path, judge: Judge) -> None:
    flaw = Flaw("model.norm", "scaled_edge", 1)
    verdict = judge(of=split, passes=("injected", "injectedtwice"), flaw=flaw)
    assert "does not repeat itself" not in " ".join(verdict.reasons)


def test_the_other_way_round_the_fused_is_cut_and_the_two_are_added(golden: Path, judge: Judge) -> None:
    verdict = judge(of=golden, naming="split")
    assert (verdict.verdict, verdict.reasons, verdict.coverage.not_compared) == ("match", (), ())
    found = {o.site: o.pairing for o in verdict.operators if o.pairing}
    for site, parts in JOINED.items():
        assert {(found[part].golden_site, found[part].relation) for part in parts.split(" | ")} == {(site, "join")}
    assert {o.error_class for o in verdict.operators} == {"identical"}


@pytest.mark.parametrize("naming", ["split", "fused"])
def test_two_ranks_of_golden_are_joined_first(tmp_path: Path, judge: Judge, naming: str) -> None:
    options: dict[str, Any] = {"naming": naming, "tensor_parallel": 2}
    golden = toy.record(toy.workload(max_tokens=3), tmp_path / "golden.trace", **options)
    verdict = judge(of=golden, tensor_parallel=2, naming="fused" if naming == "split" else "split")
    assert verdict.verdict == "match"
    assert {f.error_class for f in (*verdict.operators, *verdict.edges)} == {"identical"}


FAULTS = [
    Flaw("model.layers.1.self_attn.qkv_proj", "scale"),
    Flaw("model.layers.0.mlp.gate_up_proj", "coarse"),
    Flaw("model.layers.0.post_attention_layernorm", "eps"),
    Flaw("model.norm", "scale"),
    Flaw("model.layers.1.self_attn.o_proj", "element"),
    Flaw("model.layers.1.self_attn.attn", "stale"),
    Flaw("model.embed_tokens", "wrong_row"),
]


@pytest.mark.parametrize("flaw", FAULTS, ids=lambda flaw: f"{flaw.kind}-{flaw.site}")
def test_a_fault_is_named_whatever_golden_calls_its_operator(split: Path, judge: Judge, flaw: Flaw) -> None:
    verdict = judge(of=split, flaw=flaw)
    first = verdict.first_divergence
    assert (verdict.verdict, verdict.cause) == ("diverged", "operator")
    assert first is not None
    assert first.site == flaw.site
    assert [o.site for o in verdict.operators if o.error_class != "identical"] == [flaw.site]


@pytest.mark.parametrize("index", [0, 1])
def test_what_arrives_wrong_at_either_input_of_a_sum_is_found_in_the_sum(
    split: Path, judge: Judge, index: int
) -> None:
    verdict = judge(of=split, flaw=Flaw("model.layers.1.input_layernorm", "scaled_edge", index))
    differ = [e.as_dict() for e in verdict.edges if e.error_class != "identical"]
    assert (verdict.verdict, verdict.cause) == ("diverged", "edge")
    assert [(e["site"], e["input"], e["inputs"]) for e in differ] == [
        ("model.layers.1.input_layernorm", 0, [0, 1])
    ]
    assert (differ[0]["relation"], differ[0]["paired_by"]) == ("sum", "tensors")


def test_a_part_that_is_wrong_is_named_by_its_own_name(golden: Path, judge: Judge) -> None:
    flaw = Flaw("decoder.blocks.1.attention.key", "scale")
    verdict = judge(of=golden, naming="split", flaw=flaw)
    assert [o.site for o in verdict.operators if o.error_class != "identical"] == [flaw.site]


def test_a_verdict_says_where_a_pair_came_from(split: Path, judge: Judge) -> None:
    verdict = judge(of=split)
    told = {
        o["site"]: [o.get(k) for k in ("golden_site", "relation", "paired_by")]
        for o in verdict.as_dict()["operators"]
    }
    assert {site: told[site][0] for site in JOINED} == JOINED
    assert told["model.layers.0.self_attn.qkv_proj"][1:] == ["join", "tensors"]
    assert told["model.norm"] == ["decoder.final_norm", "sum", "tensors"]
    assert told["model.layers.1.self_attn.attn"] == ["decoder.blocks.1.attention.core", "rename", "shape"]
    assert told["sampler"] == [None, None, None]
    assert "It was fed as the sum and 0" in " ".join(verdict.notes)
    again = Verdict.from_dict(json.loads(json.dumps(verdict.as_dict())))
    assert again.operators == verdict.operators
    assert again.edges == verdict.edges


def test_where_the_names_are_the_same_nothing_is_said_of_pairs(judge: Judge) -> None:
    verdict = judge()
    for finding in (*verdict.operators, *verdict.edges):
        assert not {"golden_site", "relation", "paired_by", "inputs"} & finding.as_dict().keys()


def test_recordings_of_the_two_are_compared_as_well(split: Path, golden: Path) -> None:
    for pair in ((split, golden), (golden, split)):
        verdict = compare_traces(*pair)
        assert (verdict.verdict, verdict.mode, verdict.coverage.not_compared) == ("match", "compare", ())


def declare_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of the unfused toy say that they can take a residual, as many do that are never given one."""
    monkeypatch.setattr(sites._Sites, "_norm_inputs", ("x", "residual"))


def test_that_golden_gave_a_sum_shows_in_its_calls(
    tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        declare_two(patch)
        golden = toy.record(toy.workload(max_tokens=3), tmp_path / "golden.trace", naming="split")
    verdict = judge(of=golden)
    assert (verdict.verdict, verdict.coverage.not_compared) == ("match", ())
    assert {e.inputs for e in verdict.edges if e.site == "model.norm"} == {(0, 1)}


def test_a_sum_that_could_not_be_fed_is_said_and_blames_nobody(
    golden: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_two(monkeypatch)
    verdict = judge(of=golden, naming="split")
    assert verdict.verdict == "inconclusive"
    assert {n.reason[:9] for n in verdict.coverage.not_compared} == {"unfed sum"}
    assert {n.site for n in verdict.coverage.not_compared} == {
        "decoder.blocks.0.norm_2", "decoder.blocks.1.norm_1", "decoder.blocks.1.norm_2", "decoder.final_norm"
    }  # fmt: skip


# Sites.


def linear(name: str, *tensors: str, rows: int = 4, role: str = "linear", layout: Layout | None = None) -> Site:
    weights = (Parameter("weight", "bfloat16", (rows, 4), tensors),)
    layouts = {} if layout is None else {"out0": layout}
    return Site(name, "Linear", len(name), ("x",), layouts, parameters=weights, role=role)


def named(*sites: Site) -> dict[str, Site]:
    return {site.name: site for site in sites}


def paired(golden: Mapping[str, Site], candidate: Mapping[str, Site]) -> dict[str, tuple[tuple[str, ...], str]]:
    found = pair_sites(golden, candidate, SPELLINGS)
    return {site: (pair.golden, pair.paired_by) for site, pair in found.pairs.items()}


def test_parts_are_joined_in_the_candidates_order() -> None:
    golden = named(linear("v", "v.weight"), linear("k", "k.weight"), linear("q", "q.weight"))
    fused = named(linear("qkv", "q.weight", "k.weight", "v.weight"))
    assert paired(golden, fused) == {"qkv": (("q", "k", "v"), "tensors")}


def test_what_shares_tensors_without_holding_whole_parts_is_no_pair() -> None:
    golden = named(linear("qk", "q", "k"), linear("v", "v"))
    assert paired(golden, named(linear("q", "q"), linear("kv", "k", "v"))) == {}
    assert paired(golden, named(linear("all", "q", "k", "v", "more"))) == {}


def test_tensors_that_two_operators_share_pair_each_with_the_one_that_does_the_same() -> None:
    golden = named(linear("in", "wte", role="embedding"), linear("out", "wte", role="logits"))
    other = named(linear("unembed", "wte", role="logits"), linear("embed", "wte", role="embedding"))
    assert paired(golden, other) == {"embed": (("in",), "tensors"), "unembed": (("out",), "tensors")}


def test_without_tensors_role_order_and_shape_tell_unless_something_speaks_against_it() -> None:
    golden = named(*(Site(f"g{i}", "A", i, ("q",), role="attention") for i in range(2)))
    other = named(*(Site(f"c{i}", "B", i, ("q",), role="attention") for i in range(2)))
    assert paired(golden, other) == {"c0": (("g0",), "shape"), "c1": (("g1",), "shape")}
    assert paired(golden, {**other, "c2": Site("c2", "B", 2, ("q",), role="attention")}) == {}
    assert paired(named(linear("a", "one")), named(linear("b", "another"))) == {}
    assert paired(named(linear("a", rows=4)), named(linear("b", rows=8))) == {}
    assert paired(named(linear("a", role="other")), named(linear("b", role="other"))) == {}


@pytest.mark.parametrize(("operator", "is_paired"), [("NewGELU", True), ("SiluAndMul", False)])
def test_an_activation_is_not_taken_for_one_that_multiplies_too(operator: str, is_paired: bool) -> None:
    """Phi and GLM, native in one engine and models of transformers in the other."""
    golden = named(Site("mlp.act", operator, 0, ("x",), role=OPERATORS[operator].role))
    known = OPERATORS["GELUActivation"]
    other = named(Site("mlp.activation_fn", "GELUActivation", 1, ("input",), role=known.role))
    assert paired(golden, other) == ({"mlp.activation_fn": (("mlp.act",), "shape")} if is_paired else {})


def test_the_table_is_asked_last() -> None:
    """DeepSeek's attention, and an operator of which one engine has more."""
    golden = named(*(Site(name, "A", 0, role="other") for name in ("model.layers.0.self_attn.mla_attn", "x")))
    name = "model.layers.0.self_attn.mla_attn.mla_attn"
    assert paired(golden, named(Site(name, "B", 1, role="other"), Site("y", "B", 2, role="other"))) == {
        name: (("model.layers.0.self_attn.mla_attn",), "table")
    }
    neox = named(Site("gpt_neox.layers.0.attention.rotary_emb", "R", 0, role="other"))
    name = "model.layers.0.self_attn.rotary_emb"
    assert paired(neox, named(Site(name, "R", 0, role="other")))[name][1] == "table"


def test_a_joined_output_is_cut_among_ranks_part_by_part() -> None:
    whole, copied = Layout(-1, (1,), (1,)), Layout(-1, (1,), (2,))
    golden = named(linear("q", "q", rows=8, layout=whole), linear("k", "k", rows=2, layout=copied))
    joined = pair_sites(golden, named(linear("qk", "q", "k")))
    assert joined.sites["qk"].layouts["out0"] == Layout(-1, (8, 2), (1, 2))
    fused = named(linear("qk", "q", "k", layout=Layout(-1, (8, 2), (1, 2))))
    cut = pair_sites(fused, named(linear("q", "q"), linear("k", "k")))
    assert cut.sites["k"].layouts["out0"] == copied
    untold = named(linear("q", "q", layout=whole), linear("k", "k"))
    assert not pair_sites(untold, named(linear("qk", "q", "k"))).pairs


@pytest.mark.parametrize("layout", [Layout(-1, (), ()), Layout(-1, (0, 0), (1, 1)), Layout(-1, (1, 1), (1, 0))])
def test_a_layout_that_cannot_be_is_taken_for_unknown(layout: Layout) -> None:
    fused, apart = linear("qk", "q", "k", layout=layout), [linear("q", "q", layout=layout), linear("k", "k")]
    for sides in ((named(fused), named(*apart)), (named(*apart), named(fused))):
        assert not pair_sites(*sides).pairs


def test_what_cannot_be_joined_keeps_its_name_and_is_listed(split: Path) -> None:
    """As where a decoder's queries come of one tensor and its keys of another."""
    known = open_trace(split).sites("record")
    q, k = (f"decoder.blocks.0.attention.{name}" for name in ("query", "dense"))
    both = [linear("joined", *(known[name].parameters[0].tensors[0] for name in (q, k)))]
    found: SiteMap = pair_sites(known, named(*both))
    assert found.pairs["joined"].golden == (q, k)
    calls = {call.site for call in found.step(open_trace(split).steps("record")[0]).calls}
    assert {q, k} <= calls
    assert "joined" not in calls


def _fused(name: str, heads: bool) -> Site:
    weight = Parameter("weight", "bfloat16", (96, 32), ("h.0.query_key_value.weight",))
    return Site(
        name, "Linear", 1, parameters=(weight,), role="linear", config={"num_kv_heads": 4} if heads else {}
    )


@pytest.mark.parametrize("names", [("a.qkv", "b.qkv"), ("a.qkv", "a.qkv")], ids=["renamed", "same-name"])
def test_outputs_in_another_order_are_no_pair_and_the_reason_is_kept(names: tuple[str, str]) -> None:
    mine, theirs = names
    for first, second in ((True, False), (False, True)):
        found = pair_sites({mine: _fused(mine, first)}, {theirs: _fused(theirs, second)}, SPELLINGS)
        assert (found.pairs, set(found.apart)) == ({}, {mine})
    for both in (True, False):
        found = pair_sites({mine: _fused(mine, both)}, {theirs: _fused(theirs, both)}, SPELLINGS)
        assert (set(found.pairs), found.apart) == ({theirs}, {})


BY_HEADS = ("h.*.query_key_value.weight",)


def _of_heads(name: str, reordered: bool, width: int = 8) -> Site:
    """Two key/value heads with two query heads each, of one number: a linear map to q, k and v."""
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_size": 1} if reordered else {}
    weight = Parameter("weight", "float32", (width, 4), ("h.0.query_key_value.weight",))
    return Site(name, "Linear", 1, parameters=(weight,), role="linear", config=heads)


@pytest.mark.parametrize("golden_reordered", [True, False])
def test_outputs_head_by_head_are_goldens_bits_in_the_candidate_s_order(golden_reordered: bool) -> None:
    stored = np.array([["q0", "q1", "k0", "v0", "q2", "q3", "k1", "v1"]], "S4")
    fused = np.array([["q0", "q1", "q2", "q3", "k0", "k1", "v0", "v1"]], "S4")
    golden, candidate = (fused, stored) if golden_reordered else (stored, fused)
    found = pair_sites(
        {"a.qkv": _of_heads("a.qkv", golden_reordered)}, {"b.qkv": _of_heads("b.qkv", not golden_reordered)},
        SPELLINGS, BY_HEADS,
    )  # fmt: skip
    assert (found.pairs["b.qkv"].relation, found.apart) == ("reorder", {})
    rows = make_rows([(0, 0, 0)])
    output = Value("float32", (1, 8), (8, 1), golden.tobytes)
    call = Call("a.qkv", 0, (), (output,), rows, rows)
    (made,) = found.step(Step(0, rows, (call,), ())).calls
    assert (made.site, made.outputs[0].shape) == ("b.qkv", (1, 8))
    assert made.outputs[0].load() == candidate.tobytes()


def test_an_order_of_heads_that_does_not_fit_is_none() -> None:
    """A trace may say anything; and which tensors are stored head by head is known by name only."""
    strange = replace(_of_heads("a.qkv", True), config={"num_heads": 3, "num_kv_heads": 2, "head_size": 1})
    for mine, patterns in ((strange, BY_HEADS), (_of_heads("a.qkv", True), ("other.*",))):
        found = pair_sites({"a.qkv": mine}, {"a.qkv": _of_heads("a.qkv", False)}, SPELLINGS, patterns)
        assert (found.pairs, set(found.apart)) == ({}, {"a.qkv"})
