"""A real cluster of Ray on this machine, whose processes were there before and know nothing of a test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest

# Workers are niced by 15 otherwise, and starve beside whatever else runs here; here nobody needs a token.
QUIET = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def quiet_ray() -> Iterator[Mapping[str, str]]:
    """Variables of Ray's processes, whose files are apart: no later `ray.init` here must find them."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a short path, since sockets lie in it
    try:
        yield {**QUIET, "RAY_TMPDIR": folder}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_head(ray: Sequence[str], env: Mapping[str, str], *options: str) -> Iterator[str]:
    """The address of a cluster's head, with all of its processes.

    Args:
        ray: the command-line program of the Ray that is meant.
        env: variables of its processes, beside this one's.
        options: more of ``ray start``'s.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [
        *ray, "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", str(port),
        "--include-dashboard", "false", "--object-store-memory", "100000000", *options,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env={**os.environ, **env}, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail("".join(said))
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


@contextmanager
def ray_cluster(env: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a cluster of two processors and one ``shelf``, by this environment's Ray.

    Args:
        env: variables of its processes, beside this one's.
    """
    pytest.importorskip("ray")
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    options = ["--num-cpus", "2", "--resources", '{"shelf": 1}']
    with (
        quiet_ray() as quiet,
        ray_head(ray, {**quiet, **(env or {})}, *options) as address,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in QUIET.items():
            patch.setenv(name, value)
        yield address
