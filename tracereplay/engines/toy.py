"""A toy engine: two decoder layers in numpy that record and replay real traces in milliseconds.

It stands in for an inference engine in README examples, tests and fixtures. Sites and operators are named
as in vLLM's Llama, requests are batched continuously, prompts may be prefilled in chunks, and three
"versions" round differently, as engine generations do. A `Flaw` plants a fault inside one operator or on
the way to one, so that a verdict can be checked against what is known.

    >>> golden = record(workload(), Path("golden.trace"))
    >>> candidate = replay(golden, Path("candidate.trace"), flaw=Flaw("model.norm", "scale"))
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tracereplay.errors import UsageError, WorkloadError
from tracereplay.event import Layout, RowKey, RowMap, Sampled, Site, Step, Value, make_rows
from tracereplay.trace import (
    PendingCall,
    SegmentWriter,
    TensorBytes,
    Trace,
    TraceDirectory,
    open_trace,
    segment_path,
)
from tracereplay.trace.rows import prefix_digests
from tracereplay.trace.shards import cut
from tracereplay.workload import Prompt, Workload

__all__ = ["EDGE_FLAWS", "LAYERS", "OPERATOR_FLAWS", "VOCABULARY", "Flaw", "record", "replay", "workload"]

LAYERS = 2
VOCABULARY = 128
HIDDEN, HEADS, KV_HEADS, HEAD, INTERMEDIATE = 64, 4, 2, 16, 128
EPS = 1e-6

Array: TypeAlias = npt.NDArray[Any]
Rounding: TypeAlias = Literal["once", "twice", "truncate"]

OPERATOR_FLAWS = ("scale", "element", "eps", "nan", "rotary", "stale", "wrong_row", "coarse", "floor")
EDGE_FLAWS = ("scaled_edge", "positions", "swap")


@dataclass(frozen=True)
class Flaw:
    """A planted fault.

    Args:
        site: the operator that is wrong; for a fault between operators, the one where it arrives.
        kind: inside an operator, at its first output

            - ``scale``: 3 % too large
            - ``element``: one element off by five times its row's RMS, in decode only
            - ``eps``: a norm built with an epsilon of 0.5
            - ``nan``: one NaN, in each sequence's last step
            - ``rotary``: rotated by one position too many
            - ``stale``: attention reads the key and value of one earlier position as they were before it
            - ``wrong_row``: the embedding of another token, at position 1
            - ``coarse``: rounded to three bits of mantissa
            - ``floor``: rounded towards minus infinity instead of to nearest

            between operators

            - ``scaled_edge``: input ``index`` is 3 % too large
            - ``positions``: positions are one too high
            - ``swap``: layers 0 and 1 run in the other order
        index: input of an edge fault.
    """

    site: str
    kind: str
    index: int = 0

    def __post_init__(self) -> None:
        known = OPERATOR_FLAWS + EDGE_FLAWS
        if self.kind not in known:
            raise UsageError(f"The toy engine knows no flaw {self.kind!r}; it knows {known}.")


def workload(
    prompts: Sequence[Sequence[int]] = ((5, 6, 7, 8, 9), (20, 21, 22), (5, 6, 7, 40)),
    *,
    max_tokens: int = 8,
    model: str = "toy",
    sampling: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Workload:
    """A small workload for the toy engine; ``model`` names its weights, ``settings`` may hold ``dtype``."""
    given = {"max_tokens": max_tokens, "temperature": 0.0, "logprobs": 0, **(sampling or {})}
    return Workload(model, tuple(Prompt(tuple(ids), None, given) for ids in prompts), settings)


def record(
    work: Workload,
    path: Path,
    *,
    flaw: Flaw | None = None,
    rounding: Rounding = "once",
    max_rows: int | None = None,
    tensor_parallel: int = 1,
) -> Path:
    """Generates ``work`` and records it.

    Args:
        work: prompts need token ids.
        path: trace to create.
        flaw: a fault to plant.
        rounding: the "engine version": ``once`` rounds each operator's result; ``truncate`` does so towards
            zero, as vLLM 0.8.5 on CPUs without AVX-512; ``twice`` rounds also what lies between, takes all
            rows into its logits processor and shares the prompt between samples.
        max_rows: rows a step may hold; longer prompts are prefilled in chunks. None: no limit.
        tensor_parallel: 1 or 2 ranks.

    Raises:
        WorkloadError: a prompt has no token ids, or one that is not in the vocabulary.
    """
    engine = _Engine(work, rounding, max_rows, tensor_parallel, flaw)
    directory = TraceDirectory(path, _run("recording", engine, None))
    directory.add_pass("record", engine.generate(_Recorder(path, "record", engine), None))
    directory.complete()
    return path


def replay(
    golden: Path,
    path: Path,
    *,
    flaw: Flaw | None = None,
    rounding: Rounding = "once",
    max_rows: int | None = None,
    tensor_parallel: int = 1,
    settings: Mapping[str, Any] | None = None,
    model: str | None = None,
    passes: Sequence[str] = ("rerun", "injected"),
    noise: float = 0.0,
) -> Path:
    """Runs the workload of ``golden`` again, its tokens forced, in one pass free and in one injected.

    Args:
        golden: trace to replay.
        path: trace to create.
        settings: laid over the golden workload's settings.
        model: other weights than golden's.
        passes: of ``rerun``, ``injected`` and ``injectedtwice``.
        noise: relative size of an error that no two passes share, in every linear layer.

    The other arguments are those of `record`.
    """
    trace = open_trace(golden)
    work = Workload.from_dict(trace.run["workload"]).with_settings(settings or {})
    if model is not None:
        work = replace(work, model=model)
    engine = _Engine(work, rounding, max_rows, tensor_parallel, flaw, noise)
    directory = TraceDirectory(path, _run("replay", engine, trace.digest()))
    for name in passes:
        source = None if name == "rerun" else _Golden(trace)
        results = engine.generate(_Recorder(path, name, engine, source), _by_sequence(trace))
        directory.add_pass(name, results)
    directory.complete()
    trace.close()
    return path


# What the manifest says.


def _run(kind: str, engine: _Engine, golden: str | None) -> dict[str, Any]:
    described = {
        "tracereplay": "0.1.0", "level": "operator", "kind": kind, "engine": engine.describe(),
        "workload": replace(engine.work, weights=engine.weights.digest).as_dict(), "notes": [],
    }  # fmt: skip
    return described if golden is None else {**described, "golden": golden}


def _by_sequence(trace: Trace) -> dict[tuple[int, int], list[int]]:
    """The tokens that golden went on with."""
    results = trace.results.get("record", {}).get("requests")
    if results is not None:
        return {(r["request"], r["sequence"]): r["token_ids"] for r in results}
    found: dict[tuple[int, int], list[int]] = {}
    for step in trace.steps("record"):
        for sampled in step.sampled:
            found.setdefault((sampled.key.request, sampled.key.sequence), []).append(sampled.token)
    return found


# Weights.


class _Weights:
    """Deterministic random weights named by the workload's model."""

    def __init__(self, name: str, rounded: Callable[[Array], Array]) -> None:
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        random = np.random.default_rng(seed)
        state = hashlib.blake2b(digest_size=16)

        def draw(*shape: int, scale: float, mean: float = 0.0) -> Array:
            values = rounded(mean + scale * random.standard_normal(shape))
            state.update(values.tobytes())
            return values

        qkv = (HEADS + 2 * KV_HEADS) * HEAD
        self.embedding = draw(VOCABULARY, HIDDEN, scale=1.0)
        self.layers = [
            {
                "input_layernorm": draw(HIDDEN, scale=0.1, mean=1.0),
                "qkv_proj": draw(qkv, HIDDEN, scale=HIDDEN**-0.5),
                "o_proj": draw(HIDDEN, HEADS * HEAD, scale=(HEADS * HEAD) ** -0.5),
                "post_attention_layernorm": draw(HIDDEN, scale=0.1, mean=1.0),
                "gate_up_proj": draw(2 * INTERMEDIATE, HIDDEN, scale=HIDDEN**-0.5),
                "down_proj": draw(HIDDEN, INTERMEDIATE, scale=2 * INTERMEDIATE**-0.5),
            }
            for _ in range(LAYERS)
        ]
        self.norm = draw(HIDDEN, scale=0.1, mean=1.0)
        self.head = draw(VOCABULARY, HIDDEN, scale=2 * HIDDEN**-0.5)
        self.digest = state.hexdigest()


# Scheduling.


@dataclass
class _Sequence:
    """One sample while it is generated; ``done`` counts the rows computed."""

    request: int
    sequence: int
    tokens: list[int]
    prompt: int
    goal: int
    sampling: Mapping[str, Any]
    done: int = 0
    logprobs: list[float] = field(default_factory=list)

    @property
    def key(self) -> tuple[int, int]:
        return self.request, self.sequence

    @property
    def waiting(self) -> int:
        """Rows that can be computed now."""
        return len(self.tokens) - self.done if len(self.tokens) < self.goal else 0


@dataclass(frozen=True)
class _Batch:
    """The rows of one step, and which of them are sampled from."""

    rows: RowMap
    token_ids: Array
    last: tuple[tuple[int, _Sequence], ...]


def _schedule(live: Sequence[_Sequence], max_rows: int | None) -> _Batch:
    """Decoding rows first, then prompts in order, as far as the step has room."""
    room = max_rows or 1 << 30
    taken: list[tuple[_Sequence, int]] = []
    for seq in sorted(live, key=lambda s: s.waiting != 1):
        count = min(seq.waiting, room)
        if count:
            taken.append((seq, count))
            room -= count
    keys, ids, last = [], [], []
    for seq, count in taken:
        for position in range(seq.done, seq.done + count):
            keys.append((*seq.key, position))
            ids.append(seq.tokens[position])
        if seq.done + count == len(seq.tokens):
            last.append((len(keys) - 1, seq))
        seq.done += count
    return _Batch(make_rows(keys), np.array(ids, np.int64), tuple(last))


# The engine.


class _Engine:
    """The model, its numerics and its schedule. Values are float64 that fit the dtype exactly."""

    def __init__(
        self,
        work: Workload,
        rounding: Rounding,
        max_rows: int | None,
        ranks: int,
        flaw: Flaw | None,
        noise: float = 0.0,
    ) -> None:
        self.work, self.rounding, self.max_rows, self.ranks, self.flaw = work, rounding, max_rows, ranks, flaw
        self.dtype = str(work.settings.get("dtype", "bfloat16"))
        self.stored = _storage(self.dtype)
        self.weights = _Weights(work.model, self.nearest)
        self.noise, self._random = noise, np.random.default_rng(time.perf_counter_ns())
        self.sites = {site.name: site for site in _sites(ranks)}
        self._cache: dict[tuple[str, int, int], tuple[Array, Array]] = {}
        self._calls: dict[str, int] = {}
        for prompt in work.prompts:
            _check(prompt)

    def describe(self) -> dict[str, Any]:
        version = {"once": "2.0", "twice": "1.0", "truncate": "1.5"}[self.rounding]
        settings = {
            "dtype": self.dtype, "tensor_parallel_size": self.ranks, "max_num_batched_tokens": self.max_rows,
            "logprobs_mode": "raw_logprobs", **self.work.settings,
        }  # fmt: skip
        return {
            "name": f"toy-{version}", "versions": {"toy": version}, "settings": settings, "device": "cpu",
            "environment": {},
        }  # fmt: skip

    def nearest(self, x: Array) -> Array:
        """To the nearest value of the dtype, kept as float64."""
        return np.asarray(x).astype(self.stored).astype(np.float64)

    def rounded(self, x: Array) -> Array:
        """To a value of the dtype, kept as float64: the nearest, or the next towards zero."""
        near = self.nearest(x)
        if self.rounding != "truncate":
            return near
        lower = np.nextafter(near.astype(self.stored), self.stored.type(0)).astype(np.float64)
        return np.where(np.abs(near) > np.abs(x), lower, near)

    def between(self, x: Array) -> Array:
        """An intermediate result: rounded by the version that rounds twice."""
        return self.rounded(x) if self.rounding == "twice" else x

    def generate(self, recorder: _Recorder, forced: Mapping[tuple[int, int], list[int]] | None) -> dict[str, Any]:
        """One pass; returns its results as the manifest holds them."""
        begin = time.perf_counter()
        self._cache.clear()
        live = list(self._sequences())
        number = 0
        while any(seq.waiting for seq in live):
            batch = _schedule([seq for seq in live if not self._shares(seq, live)], self.max_rows)
            self._step(recorder, batch, live, forced, number)
            number += 1
        recorder.close()
        return {"requests": [_result(seq) for seq in live], "seconds": time.perf_counter() - begin}

    def _sequences(self) -> Iterator[_Sequence]:
        for request, prompt in enumerate(self.work.prompts):
            ids = list(prompt.token_ids or ())
            goal = len(ids) + int(prompt.sampling.get("max_tokens", 16))
            for sequence in range(prompt.sequences):
                yield _Sequence(request, sequence, list(ids), len(ids), goal, prompt.sampling)

    def _shares(self, seq: _Sequence, live: Sequence[_Sequence]) -> bool:
        """Whether ``seq`` waits for the prompt that its request's first sample computes."""
        return self.rounding == "twice" and seq.sequence > 0 and not seq.done and any(
            s.request == seq.request and s.sequence == 0 for s in live
        )  # fmt: skip

    def _step(
        self, recorder: _Recorder, batch: _Batch, live: list[_Sequence],
        forced: Mapping[tuple[int, int], list[int]] | None, number: int,
    ) -> None:  # fmt: skip
        recorder.begin(batch.rows)
        hidden = self._decoder(recorder, batch)
        last = self._forks(batch, live)
        sampled = self._sample(recorder, hidden, batch, last, forced) if last else []
        recorder.commit(number, sampled)

    def _forks(self, batch: _Batch, live: list[_Sequence]) -> list[tuple[int, _Sequence]]:
        """The rows to sample from; the first sample's last prompt row serves the samples that share it."""
        last = list(batch.last)
        for row, seq in batch.last:
            for other in live:
                if other.request == seq.request and seq.done == seq.prompt and self._shares(other, live):
                    self._copy_cache(seq, other)
                    last.append((row, other))
        return last

    def _copy_cache(self, seq: _Sequence, other: _Sequence) -> None:
        for layer in range(LAYERS):
            site = f"model.layers.{layer}.self_attn.attn"
            mine, theirs = (site, *seq.key), (site, *other.key)
            self._cache[theirs] = self._cache[mine]
        other.done = seq.done

    # The model, as vLLM's Llama calls it.

    def _decoder(self, tap: _Recorder, batch: _Batch) -> Array:
        positions = batch.rows[:, 2].astype(np.int64)
        if self._has("positions"):
            positions = positions + 1
        ids = tap.feed("model.embed_tokens", 0, batch.token_ids)
        embedded = self._flawed("model.embed_tokens", self._embed(ids, batch), batch)
        hidden = tap.observe("model.embed_tokens", 0, embedded)
        residual: Array | None = None
        for layer in self._order():
            hidden, residual = self._layer(tap, layer, hidden, residual, positions, batch)
        return self._norm(tap, "model.norm", self.weights.norm, hidden, residual, batch)[0]

    def _order(self) -> Sequence[int]:
        return list(reversed(range(LAYERS))) if self._has("swap") else range(LAYERS)

    def _layer(
        self, tap: _Recorder, layer: int, hidden: Array, residual: Array | None, positions: Array, batch: _Batch
    ) -> tuple[Array, Array]:
        at, weights = f"model.layers.{layer}.", self.weights.layers[layer]
        norm, post_norm = "input_layernorm", "post_attention_layernorm"
        hidden, residual = self._norm(tap, at + norm, weights[norm], hidden, residual, batch)
        hidden = self._attention(tap, at + "self_attn.", weights, hidden, positions, batch)
        hidden, residual = self._norm(tap, at + post_norm, weights[post_norm], hidden, residual, batch)
        hidden = self._linear(tap, at + "mlp.gate_up_proj", weights["gate_up_proj"], hidden, batch)
        act = at + "mlp.act_fn"
        gate_up = tap.feed(act, 0, self._edge(act, 0, hidden))
        hidden = tap.observe(act, 0, self._flawed(act, self._silu_and_mul(gate_up), batch))
        hidden = self._linear(tap, at + "mlp.down_proj", weights["down_proj"], hidden, batch, reduced=True)
        return hidden, residual

    def _attention(
        self, tap: _Recorder, at: str, weights: Mapping[str, Array], hidden: Array, positions: Array, batch: _Batch
    ) -> Array:
        qkv = self._linear(tap, at + "qkv_proj", weights["qkv_proj"], hidden, batch)
        q, k, v = np.split(qkv, [HEADS * HEAD, (HEADS + KV_HEADS) * HEAD], axis=1)
        rotary, attn = at + "rotary_emb", at + "attn"
        where = tap.feed(rotary, 0, positions)
        q, k = tap.feed(rotary, 1, q), tap.feed(rotary, 2, k)
        if self._is("rotary", rotary):
            where = where + 1
        q = tap.observe(rotary, 0, self._flawed(rotary, self._rotate(q, where), batch))
        k = tap.observe(rotary, 1, self._rotate(k, where))
        q, k, v = tap.feed(attn, 0, q), tap.feed(attn, 1, k), tap.feed(attn, 2, self._edge(attn, 2, v))
        hidden = tap.observe(attn, 0, self._flawed(attn, self._attend(attn, q, k, v, batch), batch))
        return self._linear(tap, at + "o_proj", weights["o_proj"], hidden, batch, reduced=True)

    # Operators. Each rounds its result; `between` marks where the other version rounds as well.

    def _embed(self, ids: Array, batch: _Batch) -> Array:
        if self._is("wrong_row", "model.embed_tokens"):
            ids = np.where(batch.rows[:, 2] == 1, (ids + 1) % VOCABULARY, ids)
        found: Array = self.weights.embedding[ids]
        return found

    def _norm(
        self, tap: _Recorder, site: str, weight: Array, hidden: Array, residual: Array | None, batch: _Batch
    ) -> tuple[Array, Array]:
        x = tap.feed(site, 0, self._edge(site, 0, hidden))
        if residual is not None:
            x = self.rounded(x + tap.feed(site, 1, self._edge(site, 1, residual)))
        eps = 0.5 if self._is("eps", site) else EPS
        scaled = self.between(x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps))
        normed = tap.observe(site, 0, self._flawed(site, self.rounded(scaled * weight), batch))
        return normed, x if residual is None else tap.observe(site, 1, x)

    def _linear(
        self, tap: _Recorder, site: str, weight: Array, x: Array, batch: _Batch, *, reduced: bool = False
    ) -> Array:
        x = tap.feed(site, 0, self._edge(site, 0, x))
        if reduced and self.ranks > 1:
            halves = zip(np.split(x, self.ranks, axis=1), np.split(weight, self.ranks, axis=1), strict=True)
            y = self.rounded(np.sum([self.rounded(part @ w.T) for part, w in halves], axis=0))
        else:
            y = self.rounded(x @ weight.T)
        if self.noise:
            y = self.rounded(y * (1 + self.noise * self._random.standard_normal(y.shape)))
        return tap.observe(site, 0, self._flawed(site, y, batch))

    def _rotate(self, x: Array, positions: Array) -> Array:
        half = HEAD // 2
        angles = positions[:, None] * 10000.0 ** (-np.arange(half) / half)
        cos, sin = (self.nearest(f(angles))[:, None, :] for f in (np.cos, np.sin))  # a table, made once
        heads = x.reshape(len(x), -1, HEAD)
        first, second = heads[..., :half], heads[..., half:]
        left = self.between(first * cos) - self.between(second * sin)
        right = self.between(second * cos) + self.between(first * sin)
        return self.rounded(np.concatenate([left, right], axis=-1).reshape(x.shape))

    def _attend(self, site: str, q: Array, k: Array, v: Array, batch: _Batch) -> Array:
        out = np.empty_like(q)
        rows = batch.rows.tolist()
        for i, (request, sequence, _) in enumerate(rows):
            keys, values = self._remember(site, (request, sequence), k[i], v[i])
            out[i] = self._attend_one(site, q[i].reshape(HEADS, HEAD), keys, values)
        return self.rounded(out)

    def _remember(self, site: str, key: tuple[int, int], k: Array, v: Array) -> tuple[Array, Array]:
        new = k.reshape(1, KV_HEADS, HEAD), v.reshape(1, KV_HEADS, HEAD)
        place = (site, *key)
        old = self._cache.get(place)
        both = new if old is None else (np.concatenate([old[0], new[0]]), np.concatenate([old[1], new[1]]))
        self._cache[place] = both
        return both

    def _attend_one(self, site: str, q: Array, keys: Array, values: Array) -> Array:
        if self._is("stale", site) and len(keys) > 3:
            keys, values = keys.copy(), values.copy()
            keys[-2], values[-2] = keys[-3], values[-3]
        keys, values = (np.repeat(x, HEADS // KV_HEADS, axis=1) for x in (keys, values))
        scores = np.einsum("hd,nhd->hn", q, keys) * HEAD**-0.5
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        total = weights.sum(axis=1, keepdims=True)
        mixed: Array = np.einsum("hn,nhd->hd", self.between(weights), values) / total
        return mixed.reshape(-1)

    def _silu_and_mul(self, x: Array) -> Array:
        gate, up = np.split(x, 2, axis=1)
        return self.rounded(self.between(gate / (1 + np.exp(-gate))) * up)

    def _sample(
        self, tap: _Recorder, hidden: Array, batch: _Batch, last: list[tuple[int, _Sequence]],
        forced: Mapping[tuple[int, int], list[int]] | None,
    ) -> list[Sampled]:  # fmt: skip
        picked = [row for row, _ in last]
        rows = make_rows([(*seq.key, seq.done - 1) for _, seq in last])
        logits = self._logits(tap, hidden, picked, rows, batch)
        logits = tap.feed("sampler", 0, self._edge("sampler", 0, logits), rows)
        choices = np.array([_choose(x, seq) for x, (_, seq) in zip(logits, last, strict=True)], np.int64)
        tap.observe("sampler", 0, choices, rows)
        tokens = [self._token(seq, int(c), forced) for (_, seq), c in zip(last, choices, strict=True)]
        logprobs = np.array([self._logprob(x, t, s) for x, t, (_, s) in zip(logits, tokens, last, strict=True)])
        logprobs = tap.observe("sampler", 1, self._flawed("sampler", logprobs, batch), rows)
        found = zip(last, tokens, choices.tolist(), logprobs.tolist(), strict=True)
        return [_advance(seq, token, choice, logprob) for (_, seq), token, choice, logprob in found]

    def _logits(self, tap: _Recorder, hidden: Array, picked: list[int], rows: RowMap, batch: _Batch) -> Array:
        site = "logits_processor"
        if self.rounding == "twice":
            hidden = tap.feed(site, 0, self._edge(site, 0, hidden))[picked]
        else:
            hidden = tap.feed(site, 0, self._edge(site, 0, hidden[picked]), rows)
        logits = self._flawed(site, self.rounded(hidden @ self.weights.head.T), replace(batch, rows=rows))
        return tap.observe(site, 0, logits, rows)

    def _token(self, seq: _Sequence, choice: int, forced: Mapping[tuple[int, int], list[int]] | None) -> int:
        return choice if forced is None else forced[seq.key][len(seq.tokens) - seq.prompt]

    def _logprob(self, logits: Array, token: int, seq: _Sequence) -> float:
        if self.work.settings.get("logprobs_mode") == "processed_logprobs":
            logits = logits / (float(seq.sampling.get("temperature", 1.0)) or 1.0)
        shifted = logits - logits.max()
        return float(np.float32(shifted[token] - np.log(np.exp(shifted).sum())))

    # Faults.

    def _has(self, kind: str) -> bool:
        return self.flaw is not None and self.flaw.kind == kind

    def _is(self, kind: str, site: str) -> bool:
        return self.flaw is not None and self.flaw == replace(self.flaw, site=site, kind=kind)

    def _edge(self, site: str, index: int, x: Array) -> Array:
        wrong = self._is("scaled_edge", site) and self.flaw is not None and self.flaw.index == index
        return self.rounded(x * 1.03) if wrong else x

    def _flawed(self, site: str, x: Array, batch: _Batch) -> Array:
        """``x`` with the flaw that sits at ``site``, if it is of a kind that spoils a result."""
        if self.flaw is None or self.flaw.site != site:
            return x
        spoil = _SPOIL.get(self.flaw.kind)
        return x if spoil is None else self.rounded(spoil(self, x, self._decoding(batch.rows)))

    def _decoding(self, rows: RowMap) -> list[tuple[int, bool]]:
        """Rows of generated tokens, each with whether it is its sequence's last."""
        found = []
        for i, (request, _, position) in enumerate(rows.tolist()):
            prompt = self.work.prompts[request]
            first = len(prompt.token_ids or ())
            if position >= first:
                found.append((i, position == first + int(prompt.sampling.get("max_tokens", 16)) - 2))
        return found


def _scale(engine: _Engine, x: Array, decoding: list[tuple[int, bool]]) -> Array:
    return x * 1.03


def _element(engine: _Engine, x: Array, decoding: list[tuple[int, bool]]) -> Array:
    x = x.copy()
    for row, _ in decoding:
        x[row, 7] += 5 * np.sqrt(np.mean(x[row] ** 2))
    return x


def _nan(engine: _Engine, x: Array, decoding: list[tuple[int, bool]]) -> Array:
    x = x.copy()
    for row, last in decoding:
        if last:
            x[row, 3] = np.nan
    return x


def _coarse(engine: _Engine, x: Array, decoding: list[tuple[int, bool]]) -> Array:
    mantissa, exponent = np.frexp(x)
    coarse: Array = np.ldexp(np.round(mantissa * 8) / 8, exponent)
    return coarse


def _floor(engine: _Engine, x: Array, decoding: list[tuple[int, bool]]) -> Array:
    """Half a unit in the last place too low on average, as the floor of what was never rounded is."""
    _, exponent = np.frexp(x)
    unit = np.ldexp(0.5 * _epsilon(engine.stored), exponent)
    random = np.random.default_rng(x.shape[0])
    lower: Array = x - unit * (random.random(x.shape) < 0.5)
    return lower


_SPOIL: Mapping[str, Callable[[_Engine, Array, list[tuple[int, bool]]], Array]] = {
    "scale": _scale, "element": _element, "nan": _nan, "coarse": _coarse, "floor": _floor,
}  # fmt: skip


def _choose(logits: Array, seq: _Sequence) -> int:
    """The most probable token, or one drawn with a seed that belongs to its place."""
    temperature = float(seq.sampling.get("temperature", 1.0))
    if temperature:
        seed = [int(seq.sampling.get("seed", 0)), *seq.key, len(seq.tokens)]
        logits = logits / temperature + np.random.default_rng(seed).gumbel(size=logits.shape)
    return int(np.argmax(logits))


def _advance(seq: _Sequence, token: int, choice: int, logprob: float) -> Sampled:
    key = RowKey(*seq.key, len(seq.tokens))
    seq.tokens.append(token)
    seq.logprobs.append(logprob)
    return Sampled(key, token, choice, logprob)


def _result(seq: _Sequence) -> dict[str, Any]:
    return {
        "request": seq.request, "sequence": seq.sequence, "token_ids": seq.tokens[seq.prompt :],
        "logprobs": seq.logprobs, "prompt_logprobs": None, "finish_reason": "length", "num_cached_tokens": 0,
    }  # fmt: skip


def _check(prompt: Prompt) -> None:
    ids = prompt.token_ids
    if not ids or max(ids) >= VOCABULARY:
        raise WorkloadError(f"The toy engine takes prompts of token ids below {VOCABULARY}; this one has {ids}.")


def _storage(dtype: str) -> np.dtype[Any]:
    known: np.dtype[Any]
    if dtype == "bfloat16":
        import ml_dtypes  # on the analyst's side only

        known = np.dtype(ml_dtypes.bfloat16)
    else:
        known = np.dtype(dtype)
    return known


def _epsilon(dtype: np.dtype[Any]) -> float:
    if dtype.name == "bfloat16":
        return 2.0**-7
    return float(np.finfo(dtype).eps)


# Sites.


def _slot(site: str) -> int:
    return int.from_bytes(hashlib.blake2b(site.encode(), digest_size=6).digest(), "little")


def _sites(ranks: int) -> Iterator[Site]:
    whole, pair = Layout(-1, (1,), (1,)), Layout(-1, (1, 1), (1, 1))

    def site(name: str, operator: str, inputs: tuple[str, ...], **layouts: Layout) -> Site:
        return Site(name, operator, _slot(name), inputs, layouts if ranks > 1 else {})

    yield site("model.embed_tokens", "VocabParallelEmbedding", ("input_",))
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        qkv = Layout(-1, (HEADS, KV_HEADS, KV_HEADS), (1, 1, 1))
        yield site(at + "input_layernorm", "RMSNorm", ("x", "residual"))
        yield site(at + "self_attn.qkv_proj", "QKVParallelLinear", ("input_",), out0=qkv)
        cuts = {"in1": whole, "in2": whole, "out0": whole, "out1": whole}
        yield site(at + "self_attn.rotary_emb", "RotaryEmbedding", ("positions", "query", "key"), **cuts)
        cuts = {"in0": whole, "in1": whole, "in2": whole, "out0": whole}
        yield site(at + "self_attn.attn", "Attention", ("query", "key", "value"), **cuts)
        yield site(at + "self_attn.o_proj", "RowParallelLinear", ("input_",), in0=whole)
        yield site(at + "post_attention_layernorm", "RMSNorm", ("x", "residual"))
        yield site(at + "mlp.gate_up_proj", "MergedColumnParallelLinear", ("input_",), out0=pair)
        yield site(at + "mlp.act_fn", "SiluAndMul", ("x",), in0=pair, out0=whole)
        yield site(at + "mlp.down_proj", "RowParallelLinear", ("input_",), in0=whole)
    yield site("model.norm", "RMSNorm", ("x", "residual"))
    yield site("logits_processor", "LogitsProcessor", ("hidden_states",))
    yield site("sampler", "Sampler", ("logits",))


# Recording and feeding.


class _Golden:
    """The golden values of each site, to be fed: by place, and by beginning where golden never had the place.

    Why not one numbering for all sites: golden may have sampled from a place whose row another sample's
    prompt computed, and then knows the place at the sampler and only its beginning everywhere else.
    """

    def __init__(self, trace: Trace) -> None:
        self._digests = {key: prefix_digests(ids) for key, ids in _all_tokens(trace).items()}
        self._rows: dict[tuple[str, str, int], dict[Any, Array]] = {}
        joined = _joiner(trace)
        for step in trace.steps("record"):
            self._add(step, joined)

    def _add(self, step: Step, joined: Callable[[Step, str, str, int], Array]) -> None:
        for call in step.calls:
            for side, values, rows in (("in", call.inputs, call.rows_in), ("out", call.outputs, call.rows_out)):
                for index, _ in enumerate(values):
                    known = self._rows.setdefault((call.site, side, index), {})
                    for place, x in zip(rows.tolist(), joined(step, call.site, side, index), strict=False):
                        known[tuple(place)] = known[self._beginning(place)] = x

    def _beginning(self, place: Sequence[int]) -> bytes | None:
        request, sequence, position = place
        digests = self._digests.get((request, sequence), [])
        return digests[position] if position < len(digests) else None

    def replace(self, site: str, side: str, index: int, x: Array, rows: RowMap) -> Array:
        """``x`` with the rows that golden has."""
        known = self._rows.get((site, side, index), {})
        if x.dtype.kind != "f":
            return x
        x = x.copy()
        for i, place in enumerate(rows.tolist()):
            given = known.get(tuple(place), known.get(self._beginning(place)))
            if given is not None:
                x[i] = given
        return x


def _all_tokens(trace: Trace) -> dict[tuple[int, int], list[int]]:
    prompts = trace.run["workload"]["prompts"]
    return {key: prompts[key[0]]["prompt_token_ids"] + ids for key, ids in _by_sequence(trace).items()}


def _joiner(trace: Trace) -> Callable[[Step, str, str, int], Array]:
    """Reads a tensor of a golden step, the ranks' pieces joined."""
    from tracereplay.trace.shards import join

    ranks = trace.ranks("record")
    steps = {rank: {step.number: step for step in trace.steps("record", rank)} for rank in ranks}

    def read(step: Step, site: str, side: str, index: int) -> Array:
        layout = trace.sites("record")[site].layouts.get(f"{side}{index}")
        pieces = []
        for rank in ranks if layout else ranks[:1]:
            call = next(c for c in steps[rank][step.number].calls if c.site == site)
            pieces.append(_array((call.inputs if side == "in" else call.outputs)[index]))
        return join(pieces, layout) if layout else pieces[0]

    return read


def _array(value: Value) -> Array:
    array = np.frombuffer(value.load(), _storage(value.dtype)).reshape(value.shape)
    return array if array.dtype.kind == "i" else array.astype(np.float64)


class _Recorder:
    """The taps: records what passes, and hands on golden values in an injected pass."""

    def __init__(self, path: Path, name: str, engine: _Engine, golden: _Golden | None = None) -> None:
        self._engine, self._golden = engine, golden
        self._writers = [
            SegmentWriter(segment_path(path, name, rank), {"pass": name, "rank": rank, "world": engine.ranks})
            for rank in range(engine.ranks)
        ]
        for writer in self._writers:
            writer.sites(engine.sites.values())
        self._rows = make_rows([])
        self._calls: list[dict[str, PendingCall]] = []

    def begin(self, rows: RowMap) -> None:
        self._rows = rows
        self._calls = [{} for _ in self._writers]

    def feed(self, site: str, index: int, x: Array, rows: RowMap | None = None) -> Array:
        """Records what arrived and returns what the operator shall take."""
        rows = self._rows if rows is None else rows
        self._keep(site, "in", index, x, rows)
        return x if self._golden is None else self._golden.replace(site, "in", index, x, rows)

    def observe(self, site: str, index: int, x: Array, rows: RowMap | None = None) -> Array:
        """Records a result and returns what the next operator shall see of it."""
        rows = self._rows if rows is None else rows
        self._keep(site, "out", index, x, rows)
        return x if self._golden is None else self._golden.replace(site, "out", index, x, rows)

    def _keep(self, site: str, side: str, index: int, x: Array, rows: RowMap) -> None:
        known = self._engine.sites[site]
        layout = known.layouts.get(f"{side}{index}")
        for rank, calls in enumerate(self._calls):
            piece = cut(x, layout, rank, len(self._calls)) if layout else x
            call = calls.setdefault(site, PendingCall(known.slot, 0, rows, rows))
            tensors, attribute = (call.inputs, "rows_in") if side == "in" else (call.outputs, "rows_out")
            setattr(call, attribute, rows)
            tensors[index] = self._bytes(site, piece)

    def _bytes(self, site: str, x: Array) -> TensorBytes:
        stored = x if x.dtype.kind == "i" else x.astype(np.float32 if x.ndim == 1 else self._engine.stored)
        strides = tuple(s // stored.itemsize for s in np.ascontiguousarray(stored).strides)
        return TensorBytes(stored.dtype.name, x.shape, strides, stored.tobytes())

    def commit(self, number: int, sampled: list[Sampled]) -> None:
        for writer, calls in zip(self._writers, self._calls, strict=True):
            writer.step(number, self._rows, list(calls.values()), sampled, [])

    def close(self) -> None:
        for writer in self._writers:
            writer.close({})
