"""The process that owns a toy engine: it speaks the protocol of `engines.protocol`, as every driver does.

Settings (`engines.toy.options`): ``dtype``, ``rounding``, ``noise`` and ``tensor_parallel_size`` as in
`engines.toy.record` and `engines.toy.replay`; ``flaw``, a fault to plant, as SITE:KIND or SITE:KIND:INDEX, several
separated by commas (kinds: `engines.toy.Flaw`); ``logprobs_mode``, ``max_model_len``, ``max_num_seqs`` and
``max_num_batched_tokens`` as other engines have them. Texts are tokenized by their bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tracereplay.engines.protocol import serve, without_unknown
from tracereplay.engines.request import Cancel, Inject, PassRequest
from tracereplay.engines.toy.checkpoint import read_tensors
from tracereplay.engines.toy.engine import Engine
from tracereplay.engines.toy.family import VERSION
from tracereplay.engines.toy.flaws import flaws_of
from tracereplay.engines.toy.golden import Cancelled, Forced, Golden, Source, golden_tokens
from tracereplay.engines.toy.names import Naming
from tracereplay.engines.toy.numerics import Array
from tracereplay.engines.toy.options import DEFAULTS, KNOWN, check_settings
from tracereplay.engines.toy.recorder import Recorder
from tracereplay.engines.toy.runs import golden_for
from tracereplay.engines.toy.weights import VOCABULARY
from tracereplay.errors import Unsupported, UsageError, WorkloadError
from tracereplay.passes import INJECTED
from tracereplay.recorder.choosing import Choice
from tracereplay.recorder.options import OPERATOR, Options
from tracereplay.trace import open_trace
from tracereplay.workload import Prompt, Workload

__all__ = ["ToyDriver", "main"]

# Parameters without which it would generate something else than was asked for.
_NOT_OURS = ("allowed_token_ids", "bad_words", "logit_bias", "lora", "stop", "structured_outputs")


class ToyDriver:
    """One toy engine."""

    def __init__(self) -> None:
        self._settings: Mapping[str, Any] = {}
        self._tensors: Mapping[str, Array] = {}

    def start(self, model: str, settings: Mapping[str, Any], inherited: Collection[str] = ()) -> dict[str, Any]:
        """Reads the checkpoint.

        Raises:
            UsageError: a setting is wrong, or names an unknown flaw.
            WorkloadError: the model is not one of the toy.
        """
        settings = without_unknown(settings, inherited, KNOWN)
        check_settings(settings)
        given = {name: value for name, value in settings.items() if value is not None}
        flaws_of(given.get("flaw", ""))
        self._settings, self._tensors = {**DEFAULTS, **given}, read_tensors(Path(model))
        # The flaw is not reported, since a real engine would not know of it.
        told = {name: value for name, value in self._settings.items() if name != "flaw"}
        ranks = self._settings.get("tensor_parallel_size", 1)
        return {"versions": {"toy": VERSION}, "settings": told, "device": "cpu", "environment": {}, "ranks": ranks}

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """The bytes of ``texts``."""
        return [list(text.encode()) for text in texts]

    def generate(self, prompts: list[Mapping[str, Any]], recording: PassRequest | None) -> dict[str, Any]:
        """Generates once; records the pass that is asked for, if one is.

        Raises:
            WorkloadError: a prompt is invalid.
            UsageError: the toy does not support the requested recording.
        """
        self._check(prompts)
        if recording is None:
            engine = self._engine(prompts)
            recorder = Recorder(Path(), "", engine.numerics, 0, None, engine.sites)
            return {**engine.generate(recorder, None), "ranks": []}
        _check_options(recording.options)
        engine = self._engine(prompts, self._naming(recording))
        with ExitStack() as traces:  # they are read as the generation goes on
            forced, source = _given(recording, engine, traces)
            recorder = self._recorder(recording, engine, source)
            results = engine.generate(recorder, forced, recording.serving.of(len(prompts)))
        return {**results, "ranks": [{"steps": recorder.steps, "errors": {}} for _ in range(engine.ranks)]}

    def _recorder(self, recording: PassRequest, engine: Engine, source: Source | None) -> Recorder:
        return Recorder(
            recording.trace, recording.name, engine.numerics, engine.ranks, source, engine.sites, recording.options
        )

    def _check(self, prompts: Sequence[Mapping[str, Any]]) -> None:
        longest = self._settings.get("max_model_len")
        for number, prompt in enumerate(prompts):
            ids = prompt["prompt_token_ids"]
            if wrong := [i for i in ids if not 0 <= i < VOCABULARY]:
                last = VOCABULARY - 1
                raise WorkloadError(
                    f"Prompt {number} has the token id {wrong[0]}; the model's vocabulary ends at {last}."
                )
            if asked := next((name for name in _NOT_OURS if prompt["sampling"].get(name)), None):
                raise WorkloadError(
                    f"Prompt {number} asks for {asked}, which the toy engine has not; leave it out."
                )
            whole = len(ids) + int(prompt["sampling"].get("max_tokens", 16))
            if longest is not None and whole > longest:
                raise WorkloadError(
                    f"Prompt {number} and what it asks for are {whole} tokens; max_model_len allows {longest}."
                )

    def _naming(self, recording: PassRequest) -> Naming:
        """How the operators of a pass are named."""
        return "fused"

    def _engine(self, prompts: Sequence[Mapping[str, Any]], naming: Naming = "fused") -> Engine:
        """A new engine, without the previous pass's keys, values and schedule."""
        settings = self._settings
        work = Workload("", tuple(map(_prompt, prompts)), settings)
        return Engine(
            work, settings["rounding"], settings.get("max_num_batched_tokens"),
            settings.get("tensor_parallel_size", 1), flaws_of(settings.get("flaw", "")), settings["noise"],
            naming=naming, max_seqs=settings.get("max_num_seqs"), tensors=self._tensors,
        )  # fmt: skip


def _prompt(said: Mapping[str, Any]) -> Prompt:
    return Prompt(tuple(said["prompt_token_ids"]), said.get("prompt"), said["sampling"])


def _check_options(options: Options) -> None:
    """Raises UsageError for options that the toy's recorder does not support."""
    if options.level != OPERATOR:
        raise Unsupported("The toy engine's operators dispatch no kernels; record it with --level operator.")
    if options.choice != Choice():
        raise Unsupported("The toy engine records every row of every step; leave out --tokens and --every.")
    for name, most in (("max_steps", options.max_steps), ("max_bytes", options.max_bytes)):
        if most is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"The toy engine records whatever it generates; leave out {option}.")


def _given(
    request: PassRequest, engine: Engine, traces: ExitStack
) -> tuple[Forced | None, Source | None]:  # fmt: skip
    """The tokens to force, and the source of replaced values, read from ``traces``."""
    if request.golden is None:
        return None, None
    golden = traces.enter_context(open_trace(request.golden))
    forced = golden_tokens(golden)
    match request.feed:
        case None:
            return forced, None
        case Inject():
            return forced, golden_for(golden, engine)
        case Cancel(selection, path):
            injected = traces.enter_context(open_trace(path))
            values = golden_for(golden, engine), Golden(injected, INJECTED)
            return forced, Cancelled(*values, selection, engine.numerics)


def main() -> None:
    """Handles commands until the input ends."""
    serve(ToyDriver())


if __name__ == "__main__":
    main()
