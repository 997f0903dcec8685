"""Numbers a command's engines, which write to one trace without knowing of each other.

An engine takes the first free number, starting at its data-parallel rank, by creating a file with that number; its
ranks recognize the file by its contents.
"""

from __future__ import annotations

import os
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from tracereplay.passes import RECORD
from tracereplay.trace.directory import CLAIM, part_name, segment_path

__all__ = ["claim_segment", "data_parallel_rank"]


def claim_segment(
    trace: Path, config: Any, rank: int, pass_name: str = RECORD, claims: Path | None = None
) -> Path:
    """The path of the segment for a rank of an engine; does not exist yet.

    Args:
        trace: the trace's directory.
        config: the engine's ``VllmConfig``, whose ``instance_id`` all of its ranks share.
        rank: of the worker.
        pass_name: of the pass.
        claims: where engines claim their numbers, which hold for all traces of a recording; by default the trace.

    Raises:
        OSError: the directory cannot be written to.
    """
    first = data_parallel_rank(config)
    name = f"{getattr(config, 'instance_id', '')} {first}"
    for number in count(first):
        path = segment_path(trace, part_name(pass_name, number), rank)
        if _claimed((claims or trace) / CLAIM.format(number), name) and not path.exists():
            return path
    raise AssertionError


def data_parallel_rank(config: Any) -> int:
    """The engine's rank among those that share a server's requests."""
    parallel = config.parallel_config
    ranks = (getattr(parallel, name, 0) for name in ("data_parallel_index", "data_parallel_rank"))
    return max(rank for rank in ranks if isinstance(rank, int))


def _claimed(path: Path, name: str) -> bool:
    """Claims the number, unless another engine has; returns whether it is this engine's."""
    fd, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        os.write(fd, name.encode())
        os.link(partial, path)  # atomic: complete, and only the first link succeeds
    except FileExistsError:
        return path.read_text() == name
    finally:
        os.close(fd)
        os.unlink(partial)
    return True
