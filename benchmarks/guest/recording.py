"""The engine's side of `benchmarks/recording.py`: a recorder in a process without an engine. Prints JSON.

    python recording.py PROMPT DECODE ROUNDS SCRATCH WAY...      in an interpreter that has torch

The model is made up, of the size and with the operators of the 200 M Llama: 147 calls a step. It has no cache, so
that a decode step attends to itself only; what an operator computes is of no matter here.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from tracereplay.device import device_of
from tracereplay.event import Site, make_rows
from tracereplay.hooks.taps import listen, slot_of, tap
from tracereplay.recorder.options import Options
from tracereplay.recorder.session import Session
from tracereplay.trace import codec

WIDTH, INNER, HEADS, LAYERS, VOCABULARY = 1024, 2816, 16, 16, 16384
BLOCKS = Options(sites=("*norm*", "*.o_proj", "*.down_proj"), sides=("out",))
RAW = Options(codec=codec.RAW)
WAYS = {"plain": None, "idle taps": None, "block outputs": BLOCKS, "record": Options(), "record, raw": RAW}


class Norm(torch.nn.Module):
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        x = x if residual is None else x + residual
        return functional.rms_norm(x, (WIDTH,)), x


class Rotary(torch.nn.Module):
    def forward(self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Any:
        angle = (positions % 7).to(q.dtype)[:, None]
        return q * angle, k * angle


class Attention(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.reshape(-1, HEADS, WIDTH // HEADS).transpose(0, 1) for x in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(-1, WIDTH)


class Act(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, -1)
        return functional.silu(gate) * up


def linear(into: int, out: int) -> torch.nn.Module:
    return torch.nn.Linear(into, out, bias=False, dtype=torch.bfloat16)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_norm, self.post_norm = Norm(), Norm()
        self.qkv_proj, self.o_proj = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)
        self.rotary, self.attn, self.act = Rotary(), Attention(), Act()
        self.gate_up_proj, self.down_proj = linear(WIDTH, 2 * INNER), linear(INNER, WIDTH)

    def forward(self, positions: torch.Tensor, x: torch.Tensor, residual: torch.Tensor | None) -> Any:
        x, residual = self.input_norm(x) if residual is None else self.input_norm(x, residual)
        q, k, v = self.qkv_proj(x).split(WIDTH, -1)
        q, k = self.rotary(positions, q, k)
        x, residual = self.post_norm(self.o_proj(self.attn(q, k, v)), residual)
        return self.down_proj(self.act(self.gate_up_proj(x))), residual


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, WIDTH, dtype=torch.bfloat16)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = Norm(), linear(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x, residual = self.embed(tokens), None
        for layer in self.layers:
            x, residual = layer(positions, x, residual)
        return self.head(self.norm(x, residual)[0][-1:])


class Bench:
    """The model, tapped, and its recorder."""

    def __init__(self, prompt: int, decode: int, scratch: Path) -> None:
        self._model, self._prompt, self._decode, self._scratch = Model().eval(), prompt, decode, scratch
        self._session = Session(0, device_of(torch.device("cpu")))
        self._tapped = []
        for name, module in self._model.named_modules():
            if not module._modules:
                plain, slot = module.forward, slot_of(name)
                tap(module, slot, {"forward": plain})
                self._tapped.append((module, plain, module.forward))
                self._session.sites.append(Site(name, type(module).__name__, slot, ("x",)))
        listen(self._session)

    @torch.inference_mode()
    def generate(self, way: str) -> dict[str, Any]:
        """Wall and thread seconds of each step, and wall seconds of opening and closing."""
        for module, plain, tapped in self._tapped:
            module.forward = plain if way == "plain" else tapped
        place = Path(tempfile.mkdtemp(dir=self._scratch))
        options, session = WAYS[way], self._session
        begun = time.perf_counter()
        if options is not None:
            session.begin_pass(place / "record-rank0.seg", {"rank": 0}, None, options, self._model)
        opened, steps = time.perf_counter(), []
        for step in range(1 + self._decode):
            first, count = (0, self._prompt) if step == 0 else (self._prompt + step - 1, 1)
            positions = torch.arange(first, first + count)
            tokens = positions * 7919 % VOCABULARY
            wall, cpu = time.perf_counter(), time.thread_time()
            session.begin_step(make_rows([(0, 0, first + i) for i in range(count)]))
            self._model(tokens, positions)
            session.end_step()
            steps.append((time.perf_counter() - wall, time.thread_time() - cpu))
        ended = time.perf_counter()
        if options is not None:
            summary = session.end_pass()
            assert (summary["errors"], summary["steps"]) == ({}, len(steps)), summary
        found = {"open": opened - begun, "steps": steps, "close": time.perf_counter() - ended}
        shutil.rmtree(place)
        return found

    def opened_and_closed(self) -> float:
        """Seconds of a recording of nothing."""
        place = Path(tempfile.mkdtemp(dir=self._scratch))
        begun = time.perf_counter()
        self._session.begin_pass(place / "record-rank0.seg", {"rank": 0})
        self._session.end_pass()
        taken = time.perf_counter() - begun
        shutil.rmtree(place)
        return taken


def main() -> None:
    prompt, decode, rounds = map(int, sys.argv[1:4])
    ways = sys.argv[5:]
    torch.set_num_threads(1)
    bench = Bench(prompt, decode, Path(sys.argv[4]))
    order = ["plain", *(way for measured in ways for way in (measured, "plain"))]
    ran = [(way, bench.generate(way)) for number in range(rounds + 1) for way in order[number > 0 :]]
    nothing = [bench.opened_and_closed() for _ in range(9)]
    print(json.dumps({"generations": ran[2 * len(ways) :], "nothing": nothing}))


if __name__ == "__main__":
    main()
