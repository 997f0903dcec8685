"""A page is one file that says what the verdict says, loads nothing, and shows hostile words as words."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_support import LAYERS, POSITIONS, large

from tracereplay.census import Census, Counted
from tracereplay.comparator import compare_traces
from tracereplay.comparator.details import BEYOND, INFINITE, SAME, WITHIN, Details
from tracereplay.engines import toy
from tracereplay.engines.toy import Flaw
from tracereplay.report import html
from tracereplay.report.story import story_of
from tracereplay.verdict import Attribution, Closure, NotCompared, RoutingFinding, Verdict
from tracereplay.verdict.bisection import Bisection, Member
from tracereplay.verdict.census import CensusFinding
from tracereplay.verdict.isolated import Isolated, KernelFinding, NotReplayed
from tracereplay.verdict.oracle import Oracle, OracleError, OracleFinding

EDGE = "model.layers.1.post_attention_layernorm"
FLAWS: Mapping[str, Any] = {
    "same": {},
    "rounding": {"rounding": "twice"},
    "operator": {"rounding": "twice", "flaw": Flaw("model.layers.1.input_layernorm", "eps")},
    "edge": {"max_rows": 3, "flaw": Flaw(EDGE, "scaled_edge", 1)},
    "nan": {"flaw": Flaw("model.layers.1.mlp.down_proj", "nan")},
    "weights": {"model": "another"},
}
EVIL = "</script><script>alert(1)</script>\x1b]0;owned\x07\u202e<img src=http://evil.example/>{{ 7*7 }}'\""


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.words.setdefault(self._open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def visible(self) -> str:
        return " ".join(
            part for tag, parts in self.words.items() if tag not in ("script", "style") for part in parts
        )

    @property
    def map(self) -> Any:
        found = re.search(r'<script type="application/json" id="map-data">(.*?)</script>', self.text, re.DOTALL)
        return None if found is None else json.loads(found[1])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Verdict, Details]]:
    path = tmp_path_factory.mktemp("pages")
    golden = toy.record(toy.workload(max_tokens=24), path / "golden")
    found = {}
    for name, given in FLAWS.items():
        details = Details()
        verdict = compare_traces(golden, toy.replay(golden, path / name, **given), details=details)
        found[name] = verdict, details
    details = Details()
    other = toy.record(
        toy.workload(max_tokens=24), path / "other", flaw=Flaw("model.layers.0.input_layernorm", "eps")
    )
    found["recordings"] = compare_traces(golden, other, details=details), details
    return found


def cells(data: Any, view: str) -> np.ndarray[Any, Any]:
    raw = zlib.decompress(base64.b64decode(data["maps"][view]["cells"]))
    return np.frombuffer(raw, np.uint8).reshape(len(data["sites"]), data["columns"])


def column(data: Any, request: int, position: int) -> int:
    for r, _, first, start in reversed(data["runs"]):
        if r == request and first <= position:
            return int(start + position - first)
    raise AssertionError("there is no such row")


@pytest.mark.parametrize("name", [*FLAWS, "recordings"])
@pytest.mark.parametrize("whole", [True, False], ids=["traces", "verdict"])
def test_a_page_says_what_the_verdict_says(
    compared: dict[str, tuple[Verdict, Details]], name: str, whole: bool
) -> None:
    verdict, details = compared[name]
    page = Page(html.render(verdict, details if whole else None))
    assert "".join(page.words["title"]).startswith(verdict.verdict)
    story = story_of(verdict)
    assert all(line in page.visible for line in (story.what, story.cause, story.where, story.size, story.next.why))
    assert {o.operator for o in verdict.operators} <= set(re.findall(r"\w+", page.visible))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    order = [
        i for i in ids if i in ("verdict", "settings", "tokens", "map", "operators", "first", "left", "census")
    ]
    assert order == sorted(order, key=["verdict", "settings", "tokens", "map", "operators", "first", "left",
                                       "census"].index)  # fmt: skip
    assert (page.map is not None) == whole


@pytest.mark.parametrize("name", FLAWS)
def test_from_a_verdict_alone_a_command_stands_for_what_needs_the_traces(
    compared: dict[str, tuple[Verdict, Details]], name: str
) -> None:
    verdict, _ = compared[name]
    page = Page(html.render(verdict))
    command = f"tracereplay report {verdict.golden.trace} {verdict.candidate.trace} -o report.html"
    assert "The map of errors needs both traces" in page.visible
    assert command in page.words["code"]


def test_a_page_loads_nothing_and_runs_its_own_script_alone(
    compared: dict[str, tuple[Verdict, Details]],
) -> None:
    page = Page(html.render(*compared["operator"]))
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        own = "".join(page.words[tag]) if tag == "style" else page.words[tag][-1]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert rules[directive] == f"'sha256-{digest}'"
    assert not [a for _, a in page.tags if {"src", "style", "onclick", "srcset", "action"} & set(a)]
    assert all(str(a.get("href", "#")).startswith("#") for _, a in page.tags)
    assert page.all("link") == []
    assert "://" not in page.text.replace(str(compared["operator"][0].golden.trace), "")


def test_words_of_a_trace_are_shown_as_words(compared: dict[str, tuple[Verdict, Details]]) -> None:
    verdict, details = compared["operator"]
    first, generated = verdict.first_divergence, details.generated
    assert first is not None
    assert generated is not None
    renamed = {first.site: EVIL}
    evil = replace(
        verdict,
        reasons=(EVIL,), notes=(EVIL,), first_divergence=replace(first, site=EVIL, operator=EVIL, request_id=EVIL),
        operators=tuple(replace(o, site=renamed.get(o.site, o.site), operator=EVIL) for o in verdict.operators),
        edges=tuple(replace(e, site=EVIL) for e in verdict.edges),
        settings_diff=tuple(
            replace(d, name=EVIL, golden=EVIL, candidate={EVIL: EVIL}) for d in verdict.settings_diff
        ),
        coverage=replace(verdict.coverage, not_compared=(NotCompared(EVIL, 1, EVIL),)),
        golden=replace(verdict.golden, engine={"name": EVIL}, trace=EVIL, digest=EVIL),
    )  # fmt: skip
    texts = replace(generated, golden=replace(generated.golden, texts=(EVIL,) * 3))
    seen = replace(details, generated=texts, sites=tuple(renamed.get(site, site) for site in details.sites))
    for page in (Page(html.render(evil, seen, decode=lambda _: EVIL)), Page(html.render(evil))):
        assert not {"\x1b", "\x07", "\u202e"} & set(page.text)
        assert page.all("img") == []
        assert len(page.all("script")) == (2 if page.map else 0)
        assert "<script>alert(1)" in page.visible
        assert "{{ 7*7 }}" in page.visible
        if page.map:
            assert any("</script>" in site["name"] for site in page.map["sites"])


def test_the_map_shows_a_planted_fault_where_it_is(compared: dict[str, tuple[Verdict, Details]]) -> None:
    verdict, details = compared["operator"]
    data = Page(html.render(verdict, details)).map
    first = verdict.first_divergence
    assert first is not None
    names = [site["name"] for site in data["sites"]]
    beyond = {names[n] for n in np.flatnonzero((cells(data, "operators") >= BEYOND).any(axis=1))}
    assert beyond == {o.site for o in verdict.operators if o.error_class == "exceeds"}
    row = names.index(first.site)
    assert cells(data, "operators")[row, column(data, first.request, first.position)] >= BEYOND
    assert data["first"] == ["operators", row, first.request, first.sequence, first.position]
    identical = [names.index(o.site) for o in verdict.operators if o.error_class == "identical"]
    assert identical
    assert (cells(data, "operators")[identical] <= SAME).all()
    rounding = [names.index(o.site) for o in verdict.operators if o.error_class == "rounding"]
    assert (cells(data, "operators")[rounding] <= WITHIN).all()


def test_an_edge_is_seen_in_the_other_map(compared: dict[str, tuple[Verdict, Details]]) -> None:
    data = Page(html.render(*compared["edge"])).map
    row = [site["name"] for site in data["sites"]].index(EDGE)
    assert (cells(data, "edges")[row] >= BEYOND).any()
    assert (cells(data, "operators") < BEYOND).all()


def test_what_is_not_finite_has_a_level_of_its_own(compared: dict[str, tuple[Verdict, Details]]) -> None:
    data = Page(html.render(*compared["nan"])).map
    assert (cells(data, "operators") == INFINITE).any()


def test_the_same_traces_make_a_map_of_same_bits(compared: dict[str, tuple[Verdict, Details]]) -> None:
    data = Page(html.render(*compared["same"])).map
    assert set(np.unique(cells(data, "operators")).tolist()) <= {0, SAME}
    assert all(golden == candidate for site in data["sites"] for _, golden, candidate, _ in site["inputs"])


def test_rows_have_the_steps_that_computed_them(compared: dict[str, tuple[Verdict, Details]]) -> None:
    verdict, details = compared["edge"]
    first, data = verdict.first_divergence, Page(html.render(verdict, details)).map
    assert first is not None
    where = column(data, first.request, first.position)
    place, step, by = max(run for run in data["steps"][0] if run[0] <= where)
    assert step + by * (where - place) == first.step


def test_every_plot_says_in_words_what_it_shows(compared: dict[str, tuple[Verdict, Details]]) -> None:
    page = Page(html.render(*compared["operator"]))
    drawn = page.all("svg")
    assert len(drawn) > 8
    named = {attributes.get("id") for _, attributes in page.tags}
    for svg in drawn:
        assert svg["role"] == "img"
        assert set(str(svg["aria-labelledby"]).split()) <= named
    assert all(words.strip() for words in page.words["desc"])


def test_isolated_stands_beside_inherited(compared: dict[str, tuple[Verdict, Details]]) -> None:
    verdict, details = compared["operator"]
    assert set(details.inherited) == {o.site for o in verdict.operators}
    last = details.inherited["model.norm"].relative_l2
    own = next(o for o in verdict.operators if o.site == "model.norm").metrics.relative_l2
    assert last > own  # what the planted fault does is passed on
    assert "run freely" in Page(html.render(verdict, details)).visible


def test_what_a_bisection_proved_is_shown(compared: dict[str, tuple[Verdict, Details]]) -> None:
    verdict, details = compared["rounding"]
    minimal = Bisection(
        "operators", 9, 1, 64, "the same tokens", (Member("model.norm", "RMSNorm", "rounding"),), True
    )
    parts = (
        Attribution(("RMSNorm",), 0.92, (0.9, 0.94), restores=True),
        Attribution(("Attention",), -2.0, (-3.0, 0.1)),
    )
    proved = replace(verdict, bisection=minimal, attribution=parts, closure=Closure(True, None, 64))
    shown = Page(html.render(proved, details)).visible
    for words in (
        "64 rows of logits are golden's",
        "92.0 %",
        "90.0 % to 94.0 %",
        "-200.0 %",
        "within what is allowed, without the own errors of",
    ):
        assert words in shown, words


def test_isolated_calls_references_routers_and_the_census_are_shown(
    compared: dict[str, tuple[Verdict, Details]],
) -> None:
    verdict, details = compared["operator"]
    metrics = verdict.operators[0].metrics
    error = OracleError(0.001, 1.0, -0.5)
    census = Census(5, 9, (Counted("visual", "Tower", 2, 7),), (), ())
    left = NotReplayed("aten.empty.default", 2, "not replayable: it opens a file")
    whole = replace(
        verdict,
        isolated=Isolated(9, (KernelFinding("aten.mm.default", "bfloat16", "rounding", 7, metrics),), (left,)),
        oracle=Oracle((OracleFinding("model.norm", "RMSNorm", None, 0, 4, error, error, "golden nearer"),)),
        routing=(RoutingFinding("model.layers.0.mlp.experts", 40, 3, 2),),
        coverage=replace(verdict.coverage, census=CensusFinding(census)),
    )  # fmt: skip
    shown = Page(html.render(whole, details)).visible
    for words in (
        "7 of 9 calls", "aten.mm", "it opens a file", "golden nearer", "model.layers.0.mlp.experts", "visual",
        "unobserved compute 1 module.", "no census was taken",
    ):  # fmt: skip
        assert words in shown, words


def test_a_recorded_verdict_of_two_engines_is_shown() -> None:
    saved = Path(__file__).parents[2] / "fixtures" / "tiny-llama-v0-to-v1.json"
    verdict = Verdict.from_dict(json.loads(saved.read_text()))
    page = Page(html.render(verdict))
    assert all(operator.site in page.visible for operator in verdict.operators)


def test_tokens_stand_side_by_side_with_the_first_that_differs_marked(
    compared: dict[str, tuple[Verdict, Details]],
) -> None:
    for name in ("operator", "recordings"):
        verdict, details = compared[name]
        first = verdict.tokens.first_divergence
        assert first is not None
        page = Page(html.render(verdict, details))
        marked = [attributes for attributes in page.all("mark") if attributes.get("class") == "first"]
        assert len(marked) >= 2
        assert str(first.golden) in page.words["mark"]
        assert str(first.candidate) in page.words["mark"]
        assert f"parts at position {first.position}" in page.visible


@pytest.mark.parametrize("name", FLAWS)
def test_details_do_not_change_the_verdict(compared: dict[str, tuple[Verdict, Details]], name: str) -> None:
    """The free pass is read to its end for them, and not only as far as its first divergence."""
    seen, _ = compared[name]
    assert compare_traces(seen.golden.trace, seen.candidate.trace).as_dict() == seen.as_dict()


def test_rows_that_share_a_column_show_the_worst(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden")
    candidate = toy.replay(golden, tmp_path / "candidate", flaw=Flaw("model.norm", "element"))
    one, few = Details(), Details(columns=7)
    verdict = compare_traces(golden, candidate, details=one)
    compare_traces(golden, candidate, details=few)
    assert one.outputs is not None
    assert few.outputs is not None
    width = few.outputs.scale.width
    assert width > 1
    for site, all_cells in one.outputs.cells.items():
        padded = np.concatenate([all_cells, np.zeros(-len(all_cells) % width, np.uint8)]).reshape(-1, width)
        assert (few.outputs.cells[site] == padded.max(axis=1)).all()
    data = Page(html.render(verdict, few)).map
    places = np.frombuffer(zlib.decompress(base64.b64decode(data["maps"]["operators"]["places"])), np.uint8)
    row = [site["name"] for site in data["sites"]].index("model.norm")
    worst = cells(data, "operators")[row].argmax()
    meant = worst * width + places.reshape(-1, data["columns"])[row, worst]
    assert one.outputs.cells["model.norm"][meant] == one.outputs.cells["model.norm"].max()


def test_a_large_model_makes_a_page_of_less_than_two_megabytes() -> None:
    verdict, details = large()
    text = html.render(verdict, details)
    data = Page(text).map
    assert (data["columns"], len(data["sites"])) == (POSITIONS, 9 * LAYERS + 4)
    assert len(text.encode()) < 2_000_000
