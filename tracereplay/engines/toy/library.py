"""The toy as a library, for programs that record what they run themselves (`launch.own`).

llm = LLM("model")
llm.generate(["Hello"], max_tokens=4)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from tracereplay.engines.request import PassRequest
from tracereplay.engines.toy.driver import ToyDriver
from tracereplay.engines.toy.engine import Engine
from tracereplay.engines.toy.golden import Source
from tracereplay.engines.toy.recorder import Recorder
from tracereplay.engines.variables import CONTROL, OPTIONS, RECORD_TO
from tracereplay.event import Request
from tracereplay.passes import RECORD
from tracereplay.recorder.options import Options
from tracereplay.recorder.orders import Orders
from tracereplay.trace import segment_path
from tracereplay.trace.directory import part_name
from tracereplay.workload import Workload

__all__ = ["LLM"]


class LLM:
    """A toy engine in this process, recorded if it was built while a recording was under way.

    Args:
        model: directory of the checkpoint.
        settings: engine arguments.
    """

    def __init__(self, model: str | os.PathLike[str], **settings: Any) -> None:
        self._model, self._driver = str(model), _Driver()
        info = self._driver.start(self._model, settings)
        trace = os.environ.get(RECORD_TO)
        self._trace = None if trace is None else Path(trace)
        self._driver.meta = {
            "model": self._model, "engines": 1,
            "engine": {"name": "toy", "family": "toy", **{k: v for k, v in info.items() if k != "ranks"}},
        }  # fmt: skip

    def generate(
        self, prompts: Sequence[str | Sequence[int] | Mapping[str, Any]], **sampling: Any
    ) -> list[list[int]]:
        """The tokens that follow each prompt; see `Workload.of`."""
        asked: list[Mapping[str, Any]] = []
        for prompt in Workload.of(self._model, prompts, **sampling).prompts:
            ids = prompt.token_ids or self._driver.tokenize([prompt.text or ""])[0]
            asked.append({**prompt.as_dict(), "prompt_token_ids": list(ids)})
        results = self._driver.generate(asked, self._request())
        return [list(result["token_ids"]) for result in results["requests"]]

    def _request(self) -> PassRequest | None:
        """What is recorded of a generation: each has a segment of its own, as those of several engines have."""
        if self._trace is None or os.environ.get(RECORD_TO) is None or _is_paused():
            return None
        names = (part_name(RECORD, number) for number in count())
        name = next(name for name in names if not segment_path(self._trace, name, 0).exists())
        options = Options.from_dict(json.loads(os.environ.get(OPTIONS, "{}")))
        return PassRequest(self._trace, name, options=options)


class _Driver(ToyDriver):
    meta: Mapping[str, Any] = {}

    def _recorder(self, recording: PassRequest, engine: Engine, source: Source | None) -> Recorder:
        begun = [Request(i, 0, tuple(p.token_ids or ()), p.sampling) for i, p in enumerate(engine.work.prompts)]
        return Recorder(
            recording.trace, recording.name, engine.numerics, engine.ranks, source, engine.sites,
            recording.options, self.meta, begun,
        )  # fmt: skip


def _is_paused() -> bool:
    orders = Orders(Path(os.environ[CONTROL]), RECORD)
    try:
        given = [order["do"] for order in orders.due(1 << 62) if order.get("do") in ("pause", "resume")]
    finally:
        orders.close()
    return given[-1:] == ["pause"]
