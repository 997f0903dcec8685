"""The page in a real browser, from a file: what it shows, by mouse, by keyboard, in the dark and on a phone.

Debian's Chromium, which `setup.sh --browser` installs. Pictures are kept in TRACEREPLAY_SCREENSHOTS, if it is set.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tracereplay.comparator import compare_traces
from tracereplay.comparator.details import Details
from tracereplay.engines import toy
from tracereplay.engines.toy import Flaw
from tracereplay.report import html
from tracereplay.verdict import Verdict

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.program
FAULT = "model.layers.1.input_layernorm"
QUIET = "model.embed_tokens"


@dataclass
class Made:
    """A page's file, and what it was made from."""

    path: Path
    verdict: Verdict
    golden: Path
    candidate: Path

    @property
    def url(self) -> str:
        return self.path.as_uri()


@dataclass
class Told:
    """What a browser complains about, and asks for."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("page")
    prompts = [[5, 6, 7, 8, 9], [20, 21, 22], [5, 6, 7, 40]]
    golden = toy.record(toy.workload(prompts, max_tokens=24), place / "golden.trace")
    candidate = toy.replay(golden, place / "candidate.trace", rounding="twice", flaw=Flaw(FAULT, "eps"))
    details = Details()
    verdict = compare_traces(golden, candidate, details=details)
    path = place / "report.html"
    path.write_text(html.render(verdict, details, limit=0.05))
    return Made(path, verdict, golden, candidate)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("There is no Chromium, which CI must have; run ./setup.sh --browser.")
        pytest.skip("there is no Chromium; run ./setup.sh --browser")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


def opened(browser: Any, made: Made, told: Told | None = None, *, hash: str = "", **options: Any) -> Any:
    """The page, when its map is drawn."""
    page = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options}).new_page()
    if told is not None:
        page.on("console", lambda message: told.console.append(message.text))
        page.on("pageerror", lambda error: told.console.append(str(error)))
        page.on("request", lambda request: told.requests.append(request.url))
    page.goto(made.url + hash)
    page.wait_for_selector("html[data-ready=yes]")
    return page


def kept(page: Any, name: str, **options: Any) -> None:
    folder = os.environ.get("TRACEREPLAY_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), **options)


def click_cell(page: Any, site: str, column: int) -> None:
    """Clicks in the middle of a cell."""
    data = page.evaluate("JSON.parse(document.getElementById('map-data').textContent)")
    row = [one["name"] for one in data["sites"]].index(site)
    canvas = page.locator("#map-cells")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = (column + 0.5) * box["width"] / data["columns"], (row + 0.5) * box["height"] / len(data["sites"])
    canvas.click(position={"x": x, "y": y})


def shown(page: Any) -> dict[str, str]:
    """What is said of the chosen cell."""
    facts = page.locator("#call-facts > div")
    found = {f.locator("dt").inner_text(): f.locator("dd").inner_text() for f in facts.all()}
    return {"site": page.locator("#call-title").inner_text(), **found,
            "golden": page.locator("#call-golden").inner_text(),
            "candidate": page.locator("#call-candidate").inner_text()}  # fmt: skip


def test_it_opens_without_a_complaint_or_a_request(browser: Any, made: Made) -> None:
    told = Told()
    page = opened(browser, made, told)
    kept(page, "light", full_page=True)
    assert told.console == []
    assert told.requests == [made.url]
    assert page.locator("h1").inner_text().lower().startswith("diverged")
    assert not page.locator("#map-fallback").is_visible()
    refused = page.evaluate("fetch('https://example.org').then(() => 'loaded', () => 'refused')")
    assert refused == "refused"


@pytest.mark.parametrize("broken", ["", "constructor() { throw new Error('broken'); }"])
def test_only_where_drawing_fails_something_stands_for_the_map(browser: Any, made: Made, broken: str) -> None:
    page = browser.new_context().new_page()
    page.add_init_script(
        f"window.DecompressionStream = class {{ {broken} }};" if broken else "delete window.DecompressionStream;"
    )
    page.goto(made.url)
    page.wait_for_selector("#map-fallback", state="visible")
    assert not page.locator("#map-view").is_visible()


def test_without_scripts_that_is_said(browser: Any, made: Made) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(made.url)
    assert page.locator("noscript").inner_text().startswith("The map is drawn by a script")
    assert not page.locator("#map-fallback").is_visible()


def test_cells_open_the_calls_that_they_stand_for(browser: Any, made: Made) -> None:
    page, first = opened(browser, made), made.verdict.first_divergence
    assert first is not None
    assert first.site == FAULT
    page.get_by_role("button", name="first divergence").click()
    fault = shown(page)
    assert fault["site"] == FAULT
    assert fault["row"].startswith(
        f"request {first.request}, position {first.position}; step {first.step} in golden"
    )
    assert re.fullmatch(r"out of tolerance: about \d+% of the allowed error", fault["this call's error"])
    assert fault["class over all rows"].startswith("exceeds")
    assert fault["golden"] == (
        f"tracereplay show {made.golden} {FAULT} --step {first.step} --request {first.request}"
    )
    assert f"{FAULT} --pass injected --step " in fault["candidate"]
    kept(page, "cell", full_page=True)
    click_cell(page, QUIET, 0)
    quiet = shown(page)
    assert quiet["site"] == QUIET
    assert quiet["row"].startswith("request 0, position 0;")
    assert quiet["this call's error"] == "identical: the same bits"
    click_cell(page, FAULT, 2)
    near = shown(page)
    assert near["site"] == FAULT
    assert near["row"].startswith("request 0, position 2;")
    assert near["this call's error"].startswith("out of tolerance")


def test_an_address_opens_its_cell_and_its_view(browser: Any, made: Made) -> None:
    page = opened(browser, made)
    click_cell(page, FAULT, 3)
    address = page.url
    assert address.endswith(f"#cell/operators/{FAULT}/0.0.3")
    again = opened(browser, made, hash="#" + address.split("#")[1])
    assert shown(again) == shown(page)
    page.get_by_label("what arrives at them").check()
    assert page.url.endswith(f"#cell/edges/{FAULT}/0.0.3")
    page.go_back()
    page.wait_for_function("document.querySelector('input[value=operators]').checked")
    bad = Told()
    opened(browser, made, bad, hash="#cell/%E0%A4%A/x/y.z")
    assert bad.console == []


def test_the_keyboard_is_enough(browser: Any, made: Made) -> None:
    page = opened(browser, made, hash=f"#cell/operators/{QUIET}/0.0.0")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "map-field":
            break
    assert page.evaluate("document.activeElement.id") == "map-field"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    found = shown(page)
    assert found["site"] == "model.layers.0.input_layernorm"
    assert found["row"].startswith("request 0, position 2;")
    assert page.url.endswith("#cell/operators/model.layers.0.input_layernorm/0.0.2")
    assert (
        page.locator("#map-words").inner_text().startswith("model.layers.0.input_layernorm, request 0, position 2")
    )
    page.keyboard.press("Home")
    assert shown(page)["row"].startswith("request 0, position 0;")


def test_hovering_names_the_cell(browser: Any, made: Made) -> None:
    page = opened(browser, made)
    canvas = page.locator("#map-cells")
    canvas.scroll_into_view_if_needed()
    canvas.hover(position={"x": 3, "y": 3})
    assert page.locator("#map-tip").inner_text().startswith(f"{QUIET}, request 0, position 0: identical")


def test_it_is_dark_where_that_is_preferred(browser: Any, made: Made) -> None:
    page = opened(browser, made, color_scheme="dark")
    kept(page, "dark", full_page=True)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = map(int, background[4:-1].split(","))
    assert max(red, green, blue) < 60


def test_it_fits_a_phone(browser: Any, made: Made) -> None:
    page = opened(browser, made, viewport={"width": 400, "height": 800}, has_touch=True)
    kept(page, "phone", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.get_by_role("button", name="first divergence").click()
    assert shown(page)["site"] == FAULT


def test_a_column_of_several_tokens_opens_the_worst_of_them(browser: Any, made: Made, tmp_path: Path) -> None:
    few = Details(columns=9)
    verdict = compare_traces(made.golden, made.candidate, details=few)
    path = tmp_path / "few.html"
    path.write_text(html.render(verdict, few))
    page = opened(browser, replace(made, path=path))
    page.get_by_role("button", name="largest error").click()
    (worst,) = [o.metrics.worst for o in verdict.operators if o.site == FAULT]
    assert worst is not None
    assert shown(page)["row"].startswith(
        f"request {worst.request}, position {worst.position}; step {worst.step} in"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_axe_finds_nothing_serious(browser: Any, made: Made, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(browser, made, color_scheme=scheme, viewport={"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = axe.run(page).response["violations"]
    serious = [
        (v["id"], v["help"], [node["target"] for node in v["nodes"]][:3]) for v in found
        if v["impact"] in ("serious", "critical")
    ]  # fmt: skip
    assert serious == []


def test_from_a_verdict_alone_it_has_no_map_and_no_complaint(browser: Any, made: Made, tmp_path: Path) -> None:
    path = tmp_path / "verdict.html"
    path.write_text(html.render(made.verdict))
    told = Told()
    page = browser.new_context().new_page()
    page.on("console", lambda message: told.console.append(message.text))
    page.goto(path.as_uri())
    kept(page, "verdict", full_page=True)
    assert told.console == []
    assert page.locator("#map code").inner_text() == (
        f"tracereplay report {made.golden} {made.candidate} -o report.html"
    )
