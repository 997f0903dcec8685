"""A program as those that train are: engines in actors of Ray generate while they are recorded, and afterwards.

    python ray_driver.py ADDRESS ENGINE TRACE MODEL

Runs where Ray is; prints what the actors generated, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray

import tracereplay.ray

ENGINE = {"enforce_eager": True, "max_model_len": 256, "max_num_seqs": 8}
SAMPLING = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}


@ray.remote(num_cpus=1)
class Offline:
    """Has an ``LLM``, whose engine core is a process of its own."""

    def __init__(self, model: str) -> None:
        from vllm import LLM

        self.llm = LLM(model=model, disable_log_stats=True, **ENGINE)

    def generate(self, prompts: list[list[int]]) -> list[list[int]]:
        from vllm import SamplingParams

        given = [{"prompt_token_ids": ids} for ids in prompts]
        found = self.llm.generate(given, SamplingParams(**SAMPLING), use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in found]


@ray.remote(num_cpus=1)
class Served:
    """Has an ``AsyncLLM``, as actors do that serve a trainer."""

    def __init__(self, model: str) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, **ENGINE))

    async def generate(self, prompts: list[list[int]]) -> list[list[int]]:
        from vllm import SamplingParams

        tokens = []
        for number, ids in enumerate(prompts):
            async for found in self.llm.generate(
                {"prompt_token_ids": ids}, SamplingParams(**SAMPLING), f"r-{number}"
            ):
                last = list(found.outputs[0].token_ids)
            tokens.append(last)
        return tokens


def prompts_of(actor: int) -> list[list[int]]:
    return [[40 + actor * 20 + i + 3 * n for i in range(5 + n)] for n in range(2)]


def main(address: str, engine: str, trace: str, model: str) -> dict[str, Any]:
    with tracereplay.ray.recording(trace, engine=engine, when_behind="block") as recording:
        ray.init(address, runtime_env=recording.runtime_env({"env_vars": {"MINE": "1"}}), log_to_driver=True)
        actors, answers = [], []
        for number, kind in enumerate((Offline, Served)):  # one after the other: a machine may have two cores
            actors.append(kind.remote(model))
            prompts = prompts_of(number)
            answers += zip(prompts, ray.get(actors[-1].generate.remote(prompts)), strict=True)
    after = [ray.get(actor.generate.remote(prompts_of(9))) for actor in actors]  # is not recorded any more
    ray.shutdown()
    return {"complete": recording.complete, "answers": answers, "after": after}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
