"""The process that owns the engine: vLLM behind the protocol of `engines.protocol`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import time
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tracereplay.engines.protocol import serve, unknown_setting, without_unknown
from tracereplay.engines.request import PassRequest, Serving
from tracereplay.engines.vllm.guest.asked import asked_of_graphs
from tracereplay.engines.vllm.guest.refusals import GENERATES, refuse_arguments
from tracereplay.engines.vllm.guest.sampling import Adapters, needs_tokenizer, vllm_sampling
from tracereplay.engines.vllm.guest.worker import CONTROL
from tracereplay.errors import EngineFailed, TracereplayError, Unsupported, UsageError, WorkloadError

__all__ = ["main"]

# Arguments that say nothing of the model, and that vLLM itself turns into objects.
_NOT_THE_MODEL = ("compilation_config", "kv_transfer_config", "speculative_config")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")


class Driver:
    """One engine."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._adapters = Adapters()
        self._requests = 0
        self._vocab = 0

    def start(self, model: str, settings: Mapping[str, Any], inherited: Collection[str] = ()) -> dict[str, Any]:
        """Builds ``vllm.LLM``."""
        from vllm import LLM
        from vllm.engine.arg_utils import EngineArgs

        known = {f.name for f in dataclasses.fields(EngineArgs)}
        settings = without_unknown(settings, inherited, known)
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise UsageError(unknown_setting(unknown[0], known))
        arguments: dict[str, Any] = {"model": model, "disable_log_stats": True, **settings}
        if not any((Path(model) / name).exists() for name in _TOKENIZERS):
            arguments.setdefault("skip_tokenizer_init", True)
        refuse_arguments(arguments, v0=_is_v0(), cuda=_has_graphs(), level=asked_of_graphs().level)
        _check_generates(EngineArgs, arguments)
        try:
            self._llm = LLM(**arguments)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "torchvision":
                raise
            raise WorkloadError(
                f"The model at {model} takes images, for which vLLM needs torchvision, and the engine's "
                "environment has none; for requests of text give --set language_model_only=true."
            ) from error
        self._vocab = int(self._llm.llm_engine.model_config.get_vocab_size())
        described = self._control({"do": "describe"})
        refusals = [d["refusal"] for d in described if "refusal" in d]
        if refusals:
            raise Unsupported(refusals[0])
        return {**described[0], "ranks": len(described)}

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of ``texts`` by the engine's own tokenizer."""
        if self._llm.llm_engine.model_config.skip_tokenizer_init:
            raise WorkloadError("The model directory has no tokenizer; give prompts as prompt_token_ids.")
        tokenizer = self._llm.get_tokenizer()
        return [list(map(int, tokenizer.encode(text))) for text in texts]

    def generate(self, prompts: list[Mapping[str, Any]], recording: PassRequest | None) -> dict[str, Any]:
        """Generates once; records the pass that is asked for, if one is."""
        for number, prompt in enumerate(prompts):
            self._check(prompt, number)
        parameters = [_parameters(prompt, number) for number, prompt in enumerate(prompts)]
        adapters = self._adapters.requests(prompts)
        inputs = [{"prompt_token_ids": list(p["prompt_token_ids"])} for p in prompts]
        serving = Serving() if recording is None else recording.serving
        groups = serving.of(len(prompts))
        if serving.cleared != "never":
            self._llm.reset_prefix_cache()  # it may hold golden keys and values of an injected pass
        if recording is not None:
            begin = {"do": "begin", "first_request": self._next_request(), "request": recording.as_dict()}
            self._control(begin)
        started = time.perf_counter()
        try:
            outputs: dict[int, Any] = {}
            for group in groups:
                if serving.cleared == "group":
                    self._llm.reset_prefix_cache()
                picked, asked = [inputs[i] for i in group], [parameters[i] for i in group]
                given = None if adapters is None else [adapters[i] for i in group]
                made = self._llm.generate(picked, asked, use_tqdm=False, lora_request=given)
                outputs.update(zip(group, made, strict=True))
        except BaseException as error:
            if recording is not None:
                with contextlib.suppress(Exception):  # of an engine that is dead: its own error is to be told
                    self._control({"do": "end"})
            if isinstance(error, Exception) and _while_taking(error):
                raise WorkloadError(f"vLLM refuses a request: {_first_sentence(error)}") from error
            raise
        seconds = time.perf_counter() - started
        ended = self._control({"do": "end"}) if recording is not None else []
        requests = [r for number, output in sorted(outputs.items()) for r in _results(number, output)]
        return {"requests": requests, "seconds": seconds, "ranks": ended}

    def _check(self, prompt: Mapping[str, Any], number: int) -> None:
        wrong = [i for i in prompt["prompt_token_ids"] if not 0 <= i < self._vocab]
        if wrong:
            raise WorkloadError(
                f"Prompt {number} has the token id {wrong[0]}; the model's vocabulary ends at {self._vocab - 1}."
            )
        needs = needs_tokenizer(prompt["sampling"])
        if needs and self._llm.llm_engine.model_config.skip_tokenizer_init:
            raise WorkloadError(
                f"Prompt {number} asks for {needs}, which needs a tokenizer; the model directory has none."
            )
        length, most = len(prompt["prompt_token_ids"]), int(self._llm.llm_engine.model_config.max_model_len)
        if length >= most:
            raise WorkloadError(
                f"Prompt {number} has {length} tokens, and the engine's max_model_len is {most}; give a shorter "
                "prompt or a larger max_model_len (--set max_model_len=N)."
            )

    def _next_request(self) -> int:
        return int(self._llm.request_counter.counter)

    def _control(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Sends a message to all workers and returns their answers."""
        try:
            texts = self._llm.collective_rpc(CONTROL, args=(json.dumps(message),))
        except AttributeError as error:
            raise EngineFailed(
                "The engine's worker did not load tracereplay; VLLM_PLUGINS or a sitecustomize may hide it."
            ) from error
        answers = [json.loads(text) for text in texts]
        for answer in answers:
            if "error" in answer:
                raise _remote_error(answer)
        return answers


def _has_graphs() -> bool:
    """Whether the engine would run on a device that has CUDA graphs."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda_alike())


def _is_v0() -> bool:
    """Whether the V0 engine would start; releases after it have no such switch."""
    from vllm import envs

    try:
        return not envs.VLLM_USE_V1
    except AttributeError:
        return False


def _check_generates(engine_args: Any, arguments: Mapping[str, Any]) -> None:
    """Raises WorkloadError for a model that vLLM does not know, or that generates no text, before it is loaded.

    What else is wrong with the arguments vLLM says itself, in a moment.
    """
    given = {name: value for name, value in arguments.items() if name not in _NOT_THE_MODEL}
    try:
        config = engine_args(**given).create_model_config()
    except ValueError as error:
        said = _first_sentence(error)
        if "model type" in said or "architectures" in said:
            said += _lacking(said)
            raise WorkloadError(f"vLLM cannot run the model at {arguments['model']}: {said}") from error
        return
    kinds = ", ".join(getattr(config.hf_config, "architectures", None) or [str(config.runner_type)])
    if getattr(config, "is_encoder_decoder", False):
        raise WorkloadError(
            f"The model at {arguments['model']} ({kinds}) has an encoder beside its decoder, and is given more "
            "than a text to continue; only models with a decoder alone can be recorded."
        )
    if config.runner_type not in GENERATES:
        raise WorkloadError(
            f"The model at {arguments['model']} ({kinds}) embeds or classifies and generates no text; only models "
            "that generate can be recorded."
        )


def _lacking(said: str) -> str:
    """What an environment may lack for a model whose code cannot be loaded: most that take images need it."""
    if "inspected" not in said or importlib.util.find_spec("torchvision") is not None:
        return ""
    return " The environment has no torchvision, which the code of most vision-language models needs."


def _first_sentence(error: BaseException) -> str:
    """What an error says, in a line: those of a validation begin with how many there are."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if "Value error, " in line), lines[0] if lines else type(error).__name__)
    return said.removeprefix("Value error, ").partition(" [type=")[0].rstrip(".") + "."


def _parameters(prompt: Mapping[str, Any], number: int) -> Any:
    try:
        return vllm_sampling(prompt["sampling"])
    except (ValueError, TypeError) as error:  # combinations that only vLLM knows to be wrong
        raise WorkloadError(f"vLLM refuses prompt {number}: {_first_sentence(error)}") from error


def _while_taking(error: Exception) -> bool:
    """Whether an error was raised where the engine takes a request, before it computes anything."""
    names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    return "add_request" in names and "step" not in names


def _remote_error(answer: Mapping[str, Any]) -> TracereplayError:
    error = TracereplayError(answer["error"])
    error.exit_code = answer["exit_code"]
    return error


def _results(number: int, output: Any) -> list[dict[str, Any]]:
    """Plain results of one request, one entry per sequence."""
    return [
        {
            "request": number,
            "sequence": sequence.index,
            "token_ids": list(sequence.token_ids),
            "logprobs": _chosen(sequence.token_ids, sequence.logprobs),
            "prompt_logprobs": _chosen(output.prompt_token_ids, output.prompt_logprobs),
            "finish_reason": sequence.finish_reason,
            "num_cached_tokens": getattr(output, "num_cached_tokens", None),
        }
        for sequence in output.outputs
    ]


def _chosen(tokens: Any, logprobs: Any) -> list[float | None] | None:
    """The logprob of each token, from the top-k dictionaries."""
    if logprobs is None:
        return None
    return [None if d is None else float(d[t].logprob) for t, d in zip(tokens, logprobs, strict=False)]


def main() -> None:
    """Handles commands until the input ends."""
    serve(Driver())


if __name__ == "__main__":
    main()
