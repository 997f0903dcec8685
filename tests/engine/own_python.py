"""A user's program, run by test_own_python.py under an engine's interpreter: ``own_python.py MODE MODEL FOLDER``.

It prints, as JSON, what came of it.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import tracereplay
from tracereplay.errors import UsageError

ARGUMENTS = {
    "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 8, "disable_log_stats": True,
}  # fmt: skip


def said(do):
    """The sentence with which something is refused."""
    try:
        do()
    except UsageError as error:
        return str(error)
    return None


def generate(llm, *texts, tokens=6):
    from vllm import SamplingParams

    asked = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, logprobs=0)
    return [list(output.outputs[0].token_ids) for output in llm.generate(list(texts), asked, use_tqdm=False)]


def simple(model, folder):
    """A block, an engine that lives on, and what is refused."""
    found, variables = {}, set(os.environ)
    found["bad"] = said(lambda: tracereplay.recording(folder / "x.trace", every=0))
    with tracereplay.recording(folder / "golden.trace") as recording:
        heavy = ("typer", "rich", "uv", "torch", "vllm")
        found["before"] = sorted(name for name in sys.modules if name.split(".")[0] in heavy)
        import vllm

        found["early"] = said(lambda: recording.trace)
        llm = vllm.LLM(str(model), **ARGUMENTS)
        found["first"] = generate(llm, "to be recorded", "so is this")
        recording.pause()
        found["unrecorded"] = generate(llm, "left out while paused")
        recording.resume()
        found["second"] = generate(llm, "recorded again")
        found["state"] = recording.status()["state"]
        found["control"] = (folder / "golden.trace" / "control.sock").exists()
    with recording.trace as trace:
        found["complete"] = trace.complete
        found["prompts"] = len(trace.run.prompts)
    found["after"] = generate(llm, "after the end")
    found["late"] = said(lambda: tracereplay.recording(folder / "late.trace").__enter__())
    found["left"] = [name for name in os.environ if name.startswith("TRACEREPLAY_") and name not in variables]
    return found


def several(model, folder):
    """A collection of operators chosen, in the engine's usual processes."""
    import vllm

    with tracereplay.recording(folder / "traces", rotate="1GB", sites="*.mlp.*", sides="out") as recording:
        llm = vllm.LLM(str(model), **ARGUMENTS)
        first = generate(llm, "the first trace")
        begun = recording.trigger("the second")
        second = generate(llm, "the second trace")
    return {
        "first": first, "second": second, "begun": str(begun), "traces": [str(path) for path in recording.traces],
        "complete": [tracereplay.open_trace(path).complete for path in recording.traces],
    }  # fmt: skip


def dropped(model, folder):
    """Engines of which one lets go within the block, one after the other, and what is left of them."""
    import gc
    import weakref

    import vllm

    found = {"held": [], "answers": [], "descriptors": []}
    for number in range(2):
        with tracereplay.recording(folder / f"{number}.trace", sites="*.mlp.*", sides="out") as recording:
            llm = vllm.LLM(str(model), **ARGUMENTS)
            found["answers"].append(generate(llm, f"number {number}"))
            core = llm.llm_engine.engine_core.engine_core
            held = weakref.ref(core.model_executor.driver_worker.worker.model_runner.model)
            core.shutdown()
            del llm, core
            gc.unfreeze()  # vLLM freezes what there was when it had started
            gc.collect()
            found["held"].append(held() is not None)
        found["descriptors"].append(len(os.listdir("/proc/self/fd")))
        found["complete"] = recording.trace.complete
    return found


def ranks(model, folder):
    """Engines of two ranks that generate while their recordings end."""
    import threading
    import time

    import vllm

    found = []
    for number in range(int(os.environ.get("BLOCKS", "1"))):
        with tracereplay.recording(folder / f"{number}.trace", sites="*.mlp.*", sides="out") as recording:
            llm = vllm.LLM(str(model), tensor_parallel_size=2, **ARGUMENTS)
            thread = threading.Thread(target=generate, args=(llm, "one", "two"), kwargs={"tokens": 120})
            thread.start()
            while recording.status()["steps"] < 20:
                time.sleep(0.05)
        thread.join()
        del llm
        found.append(recording.trace.complete)
    return {"complete": found}


def main():
    """Guarded, as vLLM asks for: its processes may import this file."""
    mode, model, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = {"simple": simple, "several": several, "dropped": dropped, "ranks": ranks}[mode](model, folder)
    ours = [w for w in warned if w.category is UserWarning and str(w.filename) == __file__]
    found["warned"] = [str(w.message) for w in ours]
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
