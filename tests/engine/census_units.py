"""The census and the taps, unit by unit: what only an engine's interpreter can check, since it needs torch.

test_inside.py runs this file under real engines' interpreters with the overlay; see inside_units.py.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from unit_runner import run

from tracereplay.device import Cpu
from tracereplay.engines.vllm.guest.operators import (
    compiled_modules,
    find_operators,
    parts_of_operators,
    tap_operators,
)
from tracereplay.engines.vllm.guest.parameters import TensorNames, tensor_names
from tracereplay.event import Site, make_rows
from tracereplay.hooks.census import ENTRIES
from tracereplay.hooks.graphs import watch_compiler
from tracereplay.hooks.kernels import look_into
from tracereplay.hooks.taps import listen, slot_of, tap
from tracereplay.hooks.thinning import Taken
from tracereplay.recorder.options import Options
from tracereplay.recorder.rows_first import RowsFirst
from tracereplay.recorder.session import Session
from tracereplay.trace import SegmentReader


class Norm(nn.Module):
    """As vLLM's: ``forward`` calls ``forward_native``, and so do some models."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))
        self._forward_method = self.forward_native  # bound when it is made, as vLLM does

    def forward(self, x):
        return self._forward_method(x)

    def forward_native(self, x):
        return self._scaled(x) if x.dim() > 1 else x

    def _scaled(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)) * self.weight


class Method:
    def apply(self, layer, x):
        return x @ layer.weight


class Linear(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width, width))
        self.quant_method = Method()

    def forward(self, x):
        return self.quant_method.apply(self, x)


class Rotary(nn.Module):
    """Shared by all layers, and with an entry that calls another through ``self``."""

    def forward(self, x):
        return self.forward_native(x)

    def forward_native(self, x):
        return torch.sin(x)


class Layer(nn.Module):
    def __init__(self, width, rotary):
        super().__init__()
        self.norm, self.q_norm, self.linear = Norm(width), Norm(width), Linear(width)
        self.rotary, self.act, self.drop = rotary, nn.SiLU(), nn.Dropout()
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x):
        y = self.linear(self.norm(x))
        y = self.rotary(self.q_norm.forward_native(y))
        return x + self.drop(self.act(y)) * self.scale


class Model(nn.Module):
    def __init__(self, width=8, layers=2):
        super().__init__()
        torch.manual_seed(3)
        rotary = Rotary()
        self.layers = nn.ModuleList([Layer(width, rotary) for _ in range(layers)])
        self.lm_head = nn.Linear(width, width)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def compute_logits(self, x):
        return x @ self.lm_head.weight


def _session(model, sites, compiled=(), **options):
    session = Session(0, Cpu())
    session.sites, session.compiled = sites, compiled
    listen(session)
    path = Path(tempfile.mkdtemp()) / "record-rank0.seg"
    session.begin_pass(path, {}, None, Options(**options), model)
    return session, path


def _recorded(model, sites, steps=3, parts=frozenset(), **options):
    session, path = _session(model.eval(), sites, **options)
    session.parts = parts
    results = []
    for i in range(steps):
        x = torch.linspace(0.1, 1, 24).view(3, 8) + i
        session.begin_step(make_rows([(0, 0, j) for j in range(len(x))]))
        results.append(model(x))
        session.end_step()
    summary = session.end_pass()
    listen(None)
    assert summary["errors"] == {}, summary
    return list(SegmentReader(path).steps()), results


def _tapped(model, leave_out=()):
    """Taps on everything that can have one; a name is left out, with what it is called by."""
    kept = {name: getattr(model.get_submodule(name), "forward", None) for name in leave_out}
    sites = tap_operators(model, 1, 1, TensorNames({}, {}), eager=True)
    for name in kept:
        module = model.get_submodule(name)
        for entry in ENTRIES:
            vars(module).pop(entry, None)
    return sites, [site for site in sites if site.name not in kept]


def every_operator_without_a_tap_is_named():
    names = [site.name for site in _tapped(Model())[0]]
    assert len(names) == 10, names
    for name in names:
        model = Model()
        _, sites = _tapped(model, [name])
        steps, _ = _recorded(model, sites)
        found = steps[1].census
        assert [row.module for row in found.unobserved] == [name], (name, found)
        assert all(row.calls == 2 and row.computed > 0 for row in found.unobserved), found
        kind = type(model.get_submodule(name)).__name__
        assert found.unobserved[0].kind == kind, found
        weight = f"{name}.weight"
        assert (weight in dict(model.named_parameters())) == any(p.name == weight for p in found.parameters), found


def with_all_taps_nothing_is_unobserved():
    model = Model()
    _, sites = _tapped(model)
    steps, _ = _recorded(model, sites)
    assert [step.census is None for step in steps] == [False, False, True]
    found = steps[1].census
    assert (found.unobserved, found.operators, found.calls) == ((), 10, 20), found
    assert {(row.module, row.kind) for row in found.between} == {("layers.0", "Layer"), ("layers.1", "Layer")}
    left = {p.name: p.users for p in found.parameters}
    assert left == {
        "layers.0.scale": ("layers.0",), "layers.1.scale": ("layers.1",), "lm_head.weight": (), "lm_head.bias": (),
    }, left  # fmt: skip


def a_weight_that_is_used_between_operators_is_unobserved():
    class Weighing(Model):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return super().forward(x) * self.gain

    model = Weighing()
    _, sites = _tapped(model)
    steps, _ = _recorded(model, sites)
    assert [(row.module, row.kind) for row in steps[1].census.unobserved] == [("", "Weighing")]


def a_method_that_computes_past_its_module_is_named():
    class Past(Model):
        def forward(self, x):
            linear = self.layers[0].linear
            return linear.quant_method.apply(linear, x)

    model = Past()
    _, sites = _tapped(model)
    steps, _ = _recorded(model, sites)
    (row,) = steps[1].census.unobserved
    assert (row.module, row.kind, row.calls) == ("layers.0.linear", "Linear", 2), row


def what_an_operator_is_given_to_write_to_is_its_output():
    class Into(nn.Module):
        def forward(self, x, output, scale=None):
            output.copy_(torch.sin(x))

    class Around(nn.Module):
        def __init__(self, by_name):
            super().__init__()
            self.mixer, self.by_name = Into(), by_name

        def forward(self, x):
            output = torch.full_like(x, float("nan"))
            self.mixer(x, output=output) if self.by_name else self.mixer(x, output)
            return output

    for compiled in (False, True):
        for by_name in (False, True):
            torch._dynamo.reset()
            model = Around(by_name).eval()
            sites = tap_operators(model, 1, 1, TensorNames({}, {}), eager=not compiled)
            assert [site.inputs for site in sites] == [("x", "scale")]
            if compiled:
                model.compile(backend="eager", dynamic=True, fullgraph=True)
            with torch.no_grad():  # compiled behind the census's back, too
                steps, results = _recorded(model, sites)
            for i, (step, result) in enumerate(zip(steps, results, strict=True)):
                x = torch.linspace(0.1, 1, 24).view(3, 8) + i
                assert torch.equal(result, torch.sin(x))
                (call,) = step.calls
                assert (len(call.inputs), len(call.outputs), len(call.written)) == (1, 1, 0), call


class Compiled(Model):
    """As vLLM compiles: once, past the module's own call, and without guards."""

    do_not_compile = False

    def __call__(self, x):
        if "compiled" not in vars(self):
            self.compiled = torch.compile(self.forward, backend="eager", dynamic=True, fullgraph=True)
        return self.compiled(x)


class Outer(nn.Module):
    """Computes around a compiled module."""

    def __init__(self, scale):
        super().__init__()
        self.inner, self.scale = Compiled(), scale

    def forward(self, x):
        return self.inner(x) * self.scale


def _compiled(leave_out=(), scale=1.0):
    """The census of a model that is compiled, but for a part that scales it; and its taps."""
    torch._dynamo.reset()
    model = Outer(scale).eval()
    sites = tap_operators(model, 1, 1, TensorNames({}, {}), eager=False)
    for name in leave_out:
        for entry in ENTRIES:
            vars(model.inner.get_submodule(name)).pop(entry, None)
    watch_compiler()
    kind = vars(Compiled)["__call__"]
    with torch.no_grad():
        model(torch.rand(5, 8))  # as an engine does before it serves
        (first, *_), _ = _recorded(
            model, [site for site in sites if site.name.removeprefix("inner.") not in leave_out],
            compiled=compiled_modules(model),
        )  # fmt: skip
    assert vars(Compiled)["__call__"] is kind
    return first.census, sites


def a_compiled_operator_without_a_tap_is_named():
    census, sites = _compiled()
    assert (census.operators, census.unobserved) == (len(sites), ()), census
    between = [(row.module, row.computed) for row in census.between]
    assert between == [("inner.layers.0", 2), ("inner.layers.1", 2), ("", 1)], between
    for name in [site.name.removeprefix("inner.") for site in sites]:
        census, _ = _compiled([name])
        # What is called past its own call is only known by the module that takes its weight.
        found = name.removesuffix(".q_norm")
        assert [(row.module, row.calls) for row in census.unobserved] == [(f"inner.{found}", 1)], (name, census)


def a_compiled_graph_keeps_the_taps_that_are_taken_and_its_census_knows_all():
    plain = Outer(1.0).eval()
    expected = [plain(torch.linspace(0.1, 1, 24).view(3, 8) + i) for i in range(3)]
    torch._dynamo.reset()
    model = Outer(1.0).eval()
    sites = tap_operators(model, 1, 1, TensorNames({}, {}), eager=False)
    kept, half = sites[0], sites[1]
    left_out = {"in": {s.slot for s in sites[1:]}, "out": {s.slot for s in sites[2:]}}
    watch_compiler(Taken(left_out, fed=False))
    try:
        with torch.no_grad():
            model(torch.rand(5, 8))
            steps, results = _recorded(model, sites, compiled=compiled_modules(model))
    finally:
        watch_compiler()
    assert all(map(torch.equal, results, expected))
    assert (steps[0].census.operators, steps[0].census.unobserved) == (len(sites), ()), steps[0].census
    for step in steps:
        calls = {call.site: (len(call.inputs), len(call.outputs)) for call in step.calls}
        assert calls == {kept.name: (1, 1), half.name: (0, 1)}, calls


def taps_that_feed_stay_as_they_are():
    torch._dynamo.reset()
    model = Outer(1.0).eval()
    sites = tap_operators(model, 1, 1, TensorNames({}, {}), eager=False)
    others = {s.slot for s in sites[2:]}
    watch_compiler(Taken({"in": others, "out": others}, fed=True))
    fed = []
    try:
        with torch.no_grad():
            model(torch.rand(5, 8))
            listen(SimpleNamespace(feed=lambda x, slot, index: fed.append(slot) or x + 1, observe=lambda *_: None))
            given = model(torch.rand(5, 8))
            listen(None)
    finally:
        watch_compiler()
    assert given.shape == (5, 8)
    assert set(fed) == {s.slot for s in sites[:2]}, fed


def a_compiled_model_whose_graph_was_not_read_has_no_census():
    model = Outer(1.0).eval()
    sites = tap_operators(model, 1, 1, TensorNames({}, {}), eager=False)
    torch._dynamo.reset()
    with torch.no_grad():
        steps, _ = _recorded(model, sites, compiled=[model.inner])
    assert [step.census for step in steps] == [None] * 3


def a_census_leaves_nothing_behind_and_changes_no_bit():
    plain = Model().eval()
    expected = [plain(torch.linspace(0.1, 1, 24).view(3, 8) + i) for i in range(3)]
    model = Model().eval()
    _, sites = _tapped(model)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    _, results = _recorded(model, sites)
    assert all(torch.equal(a, b) for a, b in zip(expected, results, strict=True))
    assert before == {name: dict(vars(module)) for name, module in model.named_modules()}
    assert "apply" not in vars(model.layers[0].linear.quant_method)


def each_way_into_an_operator_is_one_call():
    model = Model(layers=1)
    _, sites = _tapped(model)
    steps, _ = _recorded(model, sites, steps=1)
    calls = [call.site for call in steps[0].calls]
    assert calls == [f"layers.0.{name}" for name in ("norm", "linear", "q_norm", "rotary", "act")], calls


def a_shared_operator_is_its_callers_whichever_entry_it_calls():
    model = Model()
    _, sites = _tapped(model)
    steps, _ = _recorded(model, sites, steps=1)
    rotary = [call.site for call in steps[0].calls if "rotary" in call.site]
    assert rotary == ["layers.0.rotary", "layers.1.rotary"], rotary


def an_unknown_leaf_is_an_operator_and_what_computes_nothing_is_none():
    class Odd(nn.Module):
        def forward(self, x):
            return x * 3

    class ParallelLMHead(nn.Module):
        def forward(self, x):
            raise RuntimeError("nobody calls a head")

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd, self.drop, self.same = Odd(), nn.Dropout(), nn.Identity()
            self.empty, self.embed_out = nn.ModuleList(), ParallelLMHead()

    assert [places[0].site for places in find_operators(Holder())] == ["odd"]


def an_operator_that_is_handed_down_is_one_and_has_the_outer_name():
    class Inner(nn.Module):
        def __init__(self, linear, rotary):
            super().__init__()
            self.given, self.rotary = linear, rotary

        def forward(self, x):
            return self.rotary(self.given(x))

    class Outer(nn.Module):
        def __init__(self, rotary):
            super().__init__()
            self.linear, self.rotary = Linear(8), rotary
            self.inner = Inner(self.linear, rotary)

        def forward(self, x):
            return self.inner(x)

    class Latent(nn.Module):
        def __init__(self):
            super().__init__()
            rotary = Rotary()
            self.layers = nn.Sequential(Outer(rotary), Outer(rotary))

        def forward(self, x):
            return self.layers(x)

    names = [f"layers.{layer}.{name}" for layer in (0, 1) for name in ("linear", "rotary")]
    model = Latent()
    sites, _ = _tapped(model)
    assert [site.name for site in sites] == names, sites
    steps, _ = _recorded(model, sites)
    for step in steps:
        assert [call.site for call in step.calls] == names, step.calls
        assert not [note for note in step.notes if "did not run" in note], step.notes


def an_operator_that_a_module_hands_to_several_callers_is_one_for_each():
    class Shared(Model):
        def __init__(self):
            super().__init__()
            self.rotary = self.layers[0].rotary

    names = [places[0].site for places in find_operators(Shared())]
    assert [name for name in names if "rotary" in name] == ["layers.0.rotary", "layers.1.rotary", "rotary"], names


def what_an_operator_was_given_by_the_module_around_it_is_its_own():
    class Backend:
        def __init__(self, sinks):
            self.sinks = sinks

    class Attention(nn.Module):
        def __init__(self, sinks):
            super().__init__()
            self.impl = Backend(sinks)

        def forward(self, x):
            return x + opaque(self.impl.sinks)

    def opaque(sinks):  # as a kernel of the engine's own, in which nothing sees what it reads
        return torch.from_numpy(sinks.detach().numpy() * 2)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.sinks, self.unused = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))
            self.attn = Attention(self.sinks)

        def forward(self, x):
            return self.attn(x)

    model = Around()
    sites, _ = _tapped(model)
    steps, _ = _recorded(model, sites)
    assert [p.name for p in steps[1].census.parameters] == ["unused"], steps[1].census
    assert [(p.name, p.tensors) for p in sites[0].parameters] == [("sinks", ("sinks",))], sites


def what_an_op_of_the_engine_computes_for_a_module_is_that_modules():
    class Convolution(nn.Module):  # as vLLM's: an op finds the module by its name, and calls it
        def __init__(self):
            super().__init__()
            self.linear, self.conv = Linear(8), nn.Conv1d(8, 8, 3)

        def forward(self, x):
            return torch.ops.tracereplay_unit.convolve(self.linear(x))

        def convolve(self, x):
            return x * self.conv.weight[:, 0, 0]

    model = Convolution()
    library = torch.library.Library("tracereplay_unit", "DEF")
    library.define("convolve(Tensor x) -> Tensor")
    library.impl("convolve", lambda x: model.convolve(x), "CPU")
    look_into("tracereplay_unit")
    with torch.inference_mode():
        holder = nn.Sequential(model)
        sites, _ = _tapped(holder)
        steps, _ = _recorded(holder, sites)
    found = steps[1].census
    assert [(row.module, row.kind) for row in found.unobserved] == [("0", "Convolution")], found
    assert ("0.conv.weight", ("0",)) in [(p.name, p.users) for p in found.parameters], found


def an_operator_that_another_holds_need_not_run():
    class Attention(nn.Module):
        def __init__(self, expand):
            super().__init__()
            self.expand = expand

        def forward(self, x):
            return self.expand(x) if x.max() < 1.5 else x * 2  # the first step only

    class Latent(nn.Module):
        def __init__(self):
            super().__init__()
            self.expand, self.never = Linear(8), Linear(8)
            self.attn = Attention(self.expand)

        def forward(self, x):
            return self.attn(x)

    model = Latent()
    sites, _ = _tapped(model)
    assert [site.name for site in sites] == ["expand", "never", "attn"], sites
    steps, _ = _recorded(model, sites, parts=parts_of_operators(model, sites))
    ran = [sorted(call.site for call in step.calls) for step in steps]
    assert ran == [["attn", "expand"], ["attn"], ["attn"]], ran
    notes = [note for step in steps for note in step.notes]
    assert notes == ["never did not run in step 0."], notes


def rows_are_first_where_a_batch_of_one_is_before_them():
    slot = slot_of("act")
    module = nn.SiLU()
    tap(module, slot, {"forward": module.forward})
    session = Session(0, Cpu())
    session.sites, session.rows_first = [Site("act", "SiLU", slot)], RowsFirst([slot])
    listen(session)
    path = Path(tempfile.mkdtemp()) / "record-rank0.seg"
    fed = SimpleNamespace(
        feeds=True, stands_for=lambda *_: (0,), rows=lambda *of: torch.full_like(of[4], 2.0),
        rows_for=lambda _: None, takes=lambda _: True,
    )  # fmt: skip
    session.begin_pass(path, {}, fed, Options(), module)
    for rows in (3, 1):
        session.begin_step(make_rows([(0, 0, j) for j in range(rows)]))
        out = module(torch.ones(1, rows, 8))
        assert out.shape == (1, rows, 8), out.shape
        assert torch.equal(out, torch.full_like(out, 2.0)), out
        session.end_step()
    assert session.end_pass()["errors"] == {}
    listen(None)
    shapes = [step.calls[0].inputs[0].shape for step in SegmentReader(path).steps()]
    assert shapes == [(3, 8), (1, 8)], shapes
    assert [step.calls[0].fed for step in SegmentReader(path).steps()] == [(0,), (0,)]


def inputs_have_the_names_of_what_an_operator_calls():
    class CustomOp(nn.Module):  # as vLLM 0.8.5's
        def forward(self, *args, **kwargs):
            return self.forward_native(*args, **kwargs)

        def forward_native(self, x, residual=None):
            return x

    class Any(nn.Module):
        def forward(self, *args):
            return args[0]

    found = []
    for module in (CustomOp(), Any(), nn.SiLU()):
        entries = {name: getattr(module, name) for name in ENTRIES if hasattr(module, name)}
        found.append(tap(module, slot_of("x"), entries))
        only = type(module)()
        assert tap(only, slot_of("x"), {"forward": only.forward}) == found[-1]
    assert found == [("x", "residual"), ("args",), ("input",)], found


def a_sum_that_is_fed_is_what_the_caller_keeps_too():
    for golden_inputs, kept in (((0, 1), 2.0), ((0,), 1.0)):
        slot, norm = slot_of("norm"), Norm(8)
        tap(norm, slot, {"forward": norm.forward})
        session = Session(0, Cpu())
        session.sites = [Site("norm", "Norm", slot)]
        listen(session)
        fed = SimpleNamespace(
            feeds=True, stands_for=lambda *_, both=golden_inputs: both,
            rows_for=lambda _: None, takes=lambda _: True,
            rows=lambda slot, side, index, rows, like, inputs=None: (
                torch.full_like(like, 2.0) if side == "in" else None
            ),
        )  # fmt: skip
        path = Path(tempfile.mkdtemp()) / "record-rank0.seg"
        session.begin_pass(path, {}, fed, Options(), norm)
        session.begin_step(make_rows([(0, 0, j) for j in range(3)]))
        stream = torch.ones(3, 8)
        norm(stream)
        session.end_step()
        assert session.end_pass()["errors"] == {}
        listen(None)
        assert torch.equal(stream, torch.full((3, 8), kept)), (golden_inputs, stream)
        call = next(SegmentReader(path).steps()).calls[0]
        assert (call.fed, call.inputs[0].load()) == (golden_inputs, torch.ones(3, 8).numpy().tobytes())


def a_row_of_heads_is_not_taken_for_a_batch():
    views = RowsFirst([1])
    assert views.one(1, "in", 0, torch.ones(5, 4, 8)).shape == (5, 4, 8)
    assert views.one(1, "in", 0, torch.ones(1, 4, 8)).shape == (1, 4, 8)
    assert views.one(1, "out", 0, torch.ones(1, 4, 8)).shape == (4, 8)
    assert views.one(2, "in", 0, torch.ones(1, 4, 8)).shape == (1, 4, 8)
    assert views.one(1, "in", 1, torch.ones(1, 4, dtype=torch.int64)).shape == (4,)
    assert views.one(1, "in", 2, torch.ones(1, 8)).shape == (1, 8)


def tensors_are_named_as_the_checkpoint_names_them():
    import safetensors.torch

    folder = Path(tempfile.mkdtemp())
    stored = {
        "old.layers.0.q.weight": torch.ones(1),
        "old.layers.0.k.weight": torch.ones(1),
        "skipped": torch.ones(1),
    }
    safetensors.torch.save_file(stored, folder / "model.safetensors")
    rename = {name: name.replace("old.", "new.") for name in stored} | {"skipped": None}
    mapper = SimpleNamespace(_map_name=rename.get)
    model = SimpleNamespace(packed_modules_mapping={"qk": ["q", "k"]}, hf_to_vllm_mapper=mapper)
    names = tensor_names(model, folder)
    assert names.of("new.layers.0.qk.weight") == ("old.layers.0.q.weight", "old.layers.0.k.weight")
    assert names.of("new.layers.0.qk.base_layer.weight") == names.of("new.layers.0.qk.weight")
    assert names.of("new.layers.9.o.weight") == ("new.layers.9.o.weight",)
    plain = tensor_names(SimpleNamespace(), folder / "not-there")
    assert plain.of("a.b.weight") == ("a.b.weight",)


if __name__ == "__main__":
    run(globals())
