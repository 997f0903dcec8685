"""Attention in isolation: the candidate's backend, over a key/value cache that holds what earlier calls wrote.

Calls arrive in recorded order, each with its rows. A row attends to the keys and values of its sequence's earlier
rows, so a call is run only if these were run before in this process.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from tracereplay.alone.child.service import NotReplayable

__all__ = ["AttentionAlone"]

FIRST_BLOCKS = 16
MOST_BYTES = 2 << 30  # of one operator's cache


class _Run(NamedTuple):
    """Consecutive rows of one sequence: ``[start, stop)`` of the batch, from ``position`` on."""

    sequence: tuple[int, int]
    start: int
    stop: int
    position: int


class AttentionAlone(torch.nn.Module):  # type: ignore[misc]
    """One attention operator with a cache of its own.

    Args:
        arguments: ``num_heads``, ``num_kv_heads``, ``head_size``, ``scale``; validated.
        dtype: of queries, keys and values.
        config: vLLM's ``VllmConfig``.
        name: of the layer, new in this process.
    """

    def __init__(self, arguments: Mapping[str, Any], dtype: torch.dtype, config: Any, name: str) -> None:
        super().__init__()
        self._heads = arguments["num_heads"], arguments["num_kv_heads"]
        self._size, self._dtype, self._config, self._name = arguments["head_size"], dtype, config, name
        config.model_config.dtype = dtype  # read by metadata builders
        layer: Any = _layer_class()
        self.layer = layer(**arguments, cache_config=config.cache_config, prefix=name)
        self._block = int(config.cache_config.block_size or 16)
        self._v0 = not hasattr(self.layer, "get_kv_cache_spec")
        self._tables: dict[tuple[int, int], list[int]] = {}
        self._lengths: dict[tuple[int, int], int] = {}
        self._used = 0
        self._cache = self._new_cache(FIRST_BLOCKS)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Computes attention.

        Args:
            query, key, value: ``[tokens, heads x size]``.
            rows: of each token the request, sequence and position.

        Returns:
            ``[tokens, heads x size]``.

        Raises:
            NotReplayable: keys and values of earlier rows are missing.
        """
        runs = _runs(rows)
        for run in runs:
            if not 0 <= run.position <= self._lengths.get(run.sequence, 0):
                raise NotReplayable("keys and values of earlier rows of its sequence were not recorded before it")
        slots = torch.tensor([self._slot(run, i) for run in runs for i in range(run.stop - run.start)])
        count = len(rows)
        q, k, v = (x[:count].reshape(count, -1, self._size) for x in (query, key, value))
        attend = self._attend_v0 if self._v0 else self._attend_v1
        result = attend(q, k, v, runs, slots)
        for run in runs:
            self._lengths[run.sequence] = run.position + run.stop - run.start
        if count < len(query):  # padding
            result = torch.cat([result, torch.zeros_like(query[count:])])
        return result

    # -- the cache --------------------------------------------------------------------------------------

    def _slot(self, run: _Run, i: int) -> int:
        """The cache slot of the ``i``-th row of a run; allocates it."""
        table = self._tables.setdefault(run.sequence, [])
        block, offset = divmod(run.position + i, self._block)
        while len(table) <= block:
            table.append(self._used)
            self._used += 1
            if self._used > self._blocks:
                self._grow()
        return table[block] * self._block + offset

    @property
    def _blocks(self) -> int:
        return int(self._cache.shape[self._dimension])

    @property
    def _dimension(self) -> int:
        """The cache's dimension of blocks."""
        return 1 if self._cache.shape[0] == 2 and self._cache.ndim in (3, 5) else 0

    def _new_cache(self, blocks: int) -> torch.Tensor:
        backend = getattr(self.layer, "attn_backend", None) or _v0_backend()
        shape = getattr(backend, "get_kv_cache_shape", None)
        if shape is None:
            sizes: tuple[int, ...] = (blocks, self._heads[1], self._block, 2 * self._size)
        else:
            sizes = tuple(shape(blocks, self._block, self._heads[1], self._size))
        if blocks * self._block * self._heads[1] * self._size * 2 * self._dtype.itemsize > MOST_BYTES:
            raise NotReplayable(f"its keys and values would take more than {MOST_BYTES} bytes")
        return torch.zeros(sizes, dtype=self._dtype)

    def _grow(self) -> None:
        old = self._cache
        self._cache = self._new_cache(2 * self._blocks)
        self._cache.narrow(self._dimension, 0, old.shape[self._dimension]).copy_(old)

    def _block_tables(self, runs: Sequence[_Run]) -> torch.Tensor:
        tables = [self._tables[run.sequence] for run in runs]
        longest = max(map(len, tables))
        return torch.tensor([table + [0] * (longest - len(table)) for table in tables], dtype=torch.int32)

    # -- the backends -----------------------------------------------------------------------------------

    def _attend_v1(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, runs: Sequence[_Run], slots: torch.Tensor
    ) -> torch.Tensor:
        backend, impl = self.layer.attn_backend, self.layer.impl
        lengths = [run.position + run.stop - run.start for run in runs]
        starts = torch.tensor([0, *(run.stop for run in runs)], dtype=torch.int32)
        known = {
            "query_start_loc": starts, "query_start_loc_cpu": starts, "num_reqs": len(runs),
            "seq_lens": torch.tensor(lengths, dtype=torch.int32), "num_actual_tokens": len(q),
            "seq_lens_cpu": torch.tensor(lengths, dtype=torch.int32), "max_seq_len": max(lengths),
            "num_computed_tokens_cpu": torch.tensor([run.position for run in runs], dtype=torch.int32),
            "max_query_len": max(run.stop - run.start for run in runs), "causal": True,
            "block_table_tensor": self._block_tables(runs), "slot_mapping": slots,
        }  # fmt: skip
        kind = _common_metadata()
        fields = {field.name for field in dataclasses.fields(kind)}
        spec = self.layer.get_kv_cache_spec(self._config)
        builder = backend.get_builder_cls()(spec, [self._name], self._config, torch.device("cpu"))
        if hasattr(builder, "num_heads"):  # some take it from the model's configuration instead
            builder.num_heads = self._heads[0]
        metadata = builder.build(0, kind(**{name: x for name, x in known.items() if name in fields}))
        output = torch.empty(len(q), self._heads[0], self._size, dtype=q.dtype)
        if not getattr(backend, "forward_includes_kv_cache_update", True):
            impl.do_kv_cache_update(self.layer, k, v, self._cache, slots)
        impl.forward(self.layer, q, k, v, self._cache, metadata, output)
        return output.reshape(len(q), -1)

    def _attend_v0(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, runs: Sequence[_Run], slots: torch.Tensor
    ) -> torch.Tensor:
        prompts = [run for run in runs if run.position == 0]
        decodes = runs[len(prompts) :]
        if any(run.position == 0 or run.stop - run.start > 1 for run in decodes):
            raise NotReplayable("its batch has parts of prompts among other rows")
        lengths = [run.position + run.stop - run.start for run in runs]
        of_decodes = lengths[len(prompts) :]
        metadata = importlib.import_module("vllm.attention.backends.torch_sdpa").TorchSDPAMetadata(
            chunked_prefill=False, seq_lens=lengths[: len(prompts)],
            seq_lens_tensor=torch.tensor(of_decodes or lengths, dtype=torch.int32),
            max_decode_seq_len=max(of_decodes, default=0), num_prefills=len(prompts),
            num_prefill_tokens=sum(run.stop - run.start for run in prompts), num_decode_tokens=len(decodes),
            block_tables=self._block_tables(decodes) if decodes else torch.tensor([]), slot_mapping=slots,
            multi_modal_placeholder_index_maps=None, enable_kv_scales_calculation=False,
        )  # fmt: skip
        result: torch.Tensor = self.layer.impl.forward(self.layer, q, k, v, self._cache, metadata)
        return result


def _runs(rows: Sequence[Sequence[int]]) -> list[_Run]:
    """Splits rows into runs of consecutive positions of one sequence.

    Drafts that were rejected were computed like any other; a later step begins again at their positions.
    """
    runs: list[_Run] = []
    for i, (request, sequence, place) in enumerate(rows):
        position = place if place >= 0 else -1 - place
        last = runs[-1] if runs else None
        if last and last.sequence == (request, sequence) and position == last.position + i - last.start:
            runs[-1] = last._replace(stop=i + 1)
        else:
            runs.append(_Run((request, sequence), i, i + 1, position))
    return runs


def _layer_class() -> type[torch.nn.Module]:
    for name in ("vllm.model_executor.layers.attention", "vllm.attention", "vllm.attention.layer"):
        try:
            found = getattr(importlib.import_module(name), "Attention", None)
        except ModuleNotFoundError:
            continue
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise NotReplayable("this vLLM has no Attention")


def _common_metadata() -> Any:
    for name in ("vllm.v1.attention.backend", "vllm.v1.attention.backends.utils"):
        try:
            found = getattr(importlib.import_module(name), "CommonAttentionMetadata", None)
        except ModuleNotFoundError:
            continue
        if found is not None:
            return found
    raise NotReplayable("this vLLM has no metadata of attention that is known")


def _v0_backend() -> Any:
    return importlib.import_module("vllm.attention.backends.torch_sdpa").TorchSDPABackend
