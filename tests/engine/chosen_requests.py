"""A command of a user's: generates for several requests at once, of which some ask to be recorded."""

import json
import os
import sys


def main():
    from vllm import LLM, SamplingParams

    model, engine = sys.argv[1:3]
    settings = {"device": "cpu"} if engine == "v0" else {}
    llm = LLM(model, enforce_eager=True, max_model_len=256, max_num_seqs=8, skip_tokenizer_init=True,
              max_num_batched_tokens=256, **settings)  # fmt: skip
    prompts, params = [], []
    for number in range(9):
        mark = {"tracereplay": "record" if number % 3 == 0 else "skip"} if number % 2 == 0 else None
        prompts.append({"prompt_token_ids": [5 + number + i for i in range(4 + 5 * number)]})
        params.append(SamplingParams(n=1 + (number == 6), max_tokens=5 + number, temperature=0.0 if number % 2 else
                                     0.7, seed=number, ignore_eos=True, detokenize=False, logprobs=0,
                                     extra_args=mark))  # fmt: skip
    answers = llm.generate(prompts, params, use_tqdm=False)
    found = [[list(output.token_ids) for output in answer.outputs] for answer in answers]
    with open(os.environ["ANSWERS"], "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
