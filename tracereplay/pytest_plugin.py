"""A pytest plugin: tests that replay golden traces, and fail with the report::

    def test_upgrade(replays):
        verdict = replays("golden.pack", engine="v1")
        assert verdict.matches, verdict

``pytest --tracereplay-update`` records the golden traces of the tests that it runs anew; look at what changed
before you commit it. Golden traces lie beside the test, or in the directory that is named like its module
(``test_upgrade/golden.pack`` for ``test_upgrade.py``).

pytest loads this module in every session. So it imports nothing of tracereplay until a test asks for ``replays``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tracereplay.checks import Check
    from tracereplay.checks.engine import KeptEngine
    from tracereplay.comparator import Policy
    from tracereplay.environments import Engine
    from tracereplay.report.checks.shown import ShownVerdict
    from tracereplay.verdict import Verdict

__all__ = ["Replays", "replays"]

_UPDATE, _UPDATED = "tracereplay_update", "tracereplay_updated"
_SHOWN: pytest.StashKey[list[ShownVerdict]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("tracereplay").addoption(
        "--tracereplay-update",
        action="store_true",
        dest=_UPDATE,
        help="Record the golden traces of the tests that are run anew, under the engines that the tests name.",
    )


@pytest.fixture(scope="session")
def _tracereplay_engine() -> Iterator[KeptEngine]:
    """Keeps an engine from one test to the next, where that wants the same."""
    from tracereplay.checks.engine import KeptEngine

    with KeptEngine() as engine:
        yield engine


@pytest.fixture
def replays(request: pytest.FixtureRequest, _tracereplay_engine: KeptEngine) -> Replays:
    """Replays a golden trace: ``replays("golden.pack", engine="v1")`` is the verdict, ``.matches`` says the rest.

    Tests that replay under the same engine with the same settings and model, one after the other, share its start.
    """
    return Replays(request, _tracereplay_engine)


class Replays:
    """What the fixture ``replays`` is."""

    def __init__(self, request: pytest.FixtureRequest, engine: KeptEngine) -> None:
        self._request, self._engine = request, engine

    def __call__(
        self, golden: str | PathLike[str], *, engine: str, settings: Mapping[str, Any] | None = None,
        model: str | PathLike[str] | None = None, policy: Policy | str | PathLike[str] | None = None,
        mode: str = "injected", digest: str | None = None, accept: Sequence[str] = (),
        prompts: str | PathLike[str] | None = None, max_tokens: int = 16,
    ) -> Verdict:  # fmt: skip
        """The verdict of a replay; the test fails with a sentence where there is none.

        Args:
            golden: the golden trace, beside the test or in its data directory, or a URL.
            engine: name of a registered engine (``tracereplay engine list``).
            settings: engine arguments that override golden's.
            model: checkpoint directory, from the test's, if it has moved since recording.
            policy: a policy or its file; ``strict`` for every bit.
            mode: ``injected``, ``rerun`` or ``isolated``.
            digest: what golden's must be.
            accept: what of golden's signature need not fit: ``device``, ``weights``.
            prompts: file of what ``--tracereplay-update`` records golden from, the first time too.
            max_tokens: of prompts that do not say it.
        """
        from tracereplay.checks import Check
        from tracereplay.environments import load_engine
        from tracereplay.errors import EngineFailed, TracereplayError
        from tracereplay.report.checks.shown import ShownVerdict

        here = self._request.path.parent
        check = Check(
            self._request.node.nodeid, self._place(golden, prompts is not None), engine, digest,
            dict(settings or {}), None if model is None else here / model, mode=mode, accept=tuple(accept),
            prompts=None if prompts is None else here / prompts, max_tokens=max_tokens,
        )  # fmt: skip
        try:
            found = self._verdict(check, load_engine(engine), policy)
        except TracereplayError as error:
            last = f"\n{error.last_lines}" if isinstance(error, EngineFailed) and error.last_lines else ""
            pytest.fail(f"{error}{last}", pytrace=False)
        shown = self._request.node.stash.setdefault(_SHOWN, [])
        verdict = ShownVerdict(found, len(shown) + 1)
        shown.append(verdict)
        return verdict

    def _place(self, golden: str | PathLike[str], prompted: bool) -> str:
        named, test = str(golden), self._request.path
        if "://" in named:
            return named
        beside, within = test.parent / named, test.with_suffix("") / named
        if not beside.exists() and within.exists():
            return str(within)
        if not beside.exists() and not (prompted and self._request.config.getoption(_UPDATE)):
            how = "pytest --tracereplay-update" if prompted else f"tracereplay record -o {beside}"
            pytest.fail(
                f"There is no golden trace {beside}; record it with `{how}`, under an engine that is trusted.",
                pytrace=False,
            )
        return str(beside)

    def _verdict(self, check: Check, engine: Engine, policy: Policy | str | PathLike[str] | None) -> Verdict:
        from tracereplay.checks.rows import Ready, policy_named, replayed
        from tracereplay.comparator import Policy

        rules = policy
        if not isinstance(rules, Policy):
            named = None if rules is None else str(rules)
            rules = policy_named(named if named in (None, "strict") else str(self._request.path.parent / named))
        if self._request.config.getoption(_UPDATE):
            self._update(check, engine)
        return replayed(Ready(check, engine, rules), self._engine, None, None, lambda line: None)

    def _update(self, check: Check, engine: Engine) -> None:
        from tracereplay.checks.updating import record_anew

        self._engine.close()  # two at a time may be more than the machine has room for
        record_anew(engine, check)
        self._request.node.user_properties.append((_UPDATED, check.golden))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Puts a verdict's report where a failed assertion names the verdict: pytest would show 240 characters."""
    if call.excinfo is not None and isinstance(call.excinfo.value, AssertionError):
        for shown in item.stash.get(_SHOWN, []):
            _show(call.excinfo.value, shown)
    return (yield)


def _show(error: AssertionError, shown: ShownVerdict) -> None:
    said = error.args[0] if error.args else ""
    if not isinstance(said, str) or repr(shown) not in said:
        return
    if said.startswith(repr(shown)):
        error.args = (said.replace(repr(shown), str(shown), 1),)
    else:
        error.args = (f"{said}\n{shown}",)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = (report for reports in terminalreporter.stats.values() for report in reports)
    updated = {
        value
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in getattr(report, "user_properties", ())
        if name == _UPDATED
    }
    if updated:
        terminalreporter.section("tracereplay")
        for golden in sorted(updated):
            terminalreporter.line(f"{golden} was recorded anew.")
