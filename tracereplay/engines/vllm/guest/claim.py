"""Which of a command's engines this one is: several write into one trace, and none knows of the others.

An engine takes the first number that no other has, from its data-parallel rank on, by creating a file of that
number; its ranks find the file and know their engine by what is in it.
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


def claim_segment(trace: Path, config: Any, rank: int, pass_name: str = RECORD) -> Path:
    """Where a rank of an engine writes; nothing is there yet.

    Args:
        trace: the trace's directory.
        config: the engine's ``VllmConfig``, whose ``instance_id`` all of its ranks share.
        rank: of the worker.
        pass_name: of the pass.

    Raises:
        OSError: the directory cannot be written to.
    """
    first = data_parallel_rank(config)
    name = f"{getattr(config, 'instance_id', '')} {first}"
    for number in count(first):
        path = segment_path(trace, part_name(pass_name, number), rank)
        if _claimed(trace / CLAIM.format(number), name) and not path.exists():
            return path
    raise AssertionError


def data_parallel_rank(config: Any) -> int:
    """Which of the engines that share a server's requests it is."""
    parallel = config.parallel_config
    ranks = (getattr(parallel, name, 0) for name in ("data_parallel_index", "data_parallel_rank"))
    return max(rank for rank in ranks if isinstance(rank, int))


def _claimed(path: Path, name: str) -> bool:
    """Whether the number is this engine's, now or before."""
    fd, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        os.write(fd, name.encode())
        os.link(partial, path)  # whole from the first moment, and the first one's
    except FileExistsError:
        return path.read_text() == name
    finally:
        os.close(fd)
        os.unlink(partial)
    return True
