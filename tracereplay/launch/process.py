"""An engine in a process of its own, controlled by lines of JSON.

analyst's side                      engine's interpreter, with the overlay on PYTHONPATH
EngineProcess ──command──▶ stdin    the family's driver ── the engine ── workers
              ◀──answer─── stdout
                    log ◀─ stderr   (everything that the engine prints)
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tracereplay.engines.known import DEFAULT, family_named
from tracereplay.engines.request import PassRequest
from tracereplay.engines.variables import ENABLED, GRAPHS, NO_TAPS
from tracereplay.errors import EngineFailed, TracereplayError, Unsupported, UsageError, WorkloadError
from tracereplay.interpreter import SAFE, module_command
from tracereplay.launch.home import home
from tracereplay.launch.overlay import overlay_for, sealing_for
from tracereplay.recorder.options import GraphOptions
from tracereplay.trace.sealed import PACKAGES, in_use

__all__ = [
    "LAST_LINES", "Configured", "EngineProcess", "Launchable", "guest_environment", "is_log",
    "process_environment", "shell_environment",
]  # fmt: skip

LAST_LINES = 25
_LOG_READ = 4 << 20  # bytes of a log in which a cause is looked for
LOG_BEGINS = b"# tracereplay: the engine "


class Launchable(Protocol):
    """What is needed to start an engine (`environments.registry.Engine`)."""

    @property
    def name(self) -> str: ...
    @property
    def python(self) -> Path: ...
    @property
    def env(self) -> Mapping[str, str]: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def family(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Configured:
    """An engine with all its arguments and variables: what `EngineProcess` starts."""

    name: str
    python: Path
    env: Mapping[str, str]
    settings: Mapping[str, Any]
    family: str = DEFAULT


def process_environment(env: Mapping[str, str], base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables of an engine's process: ``base`` (by default this process's) over ``env``.

    Only LD_PRELOAD is concatenated, the engine's first, since both may be needed.
    """
    base = os.environ if base is None else base
    merged = {**env, **base}
    if preload := ":".join(part for part in (env.get("LD_PRELOAD"), base.get("LD_PRELOAD")) if part):
        merged["LD_PRELOAD"] = preload
    return merged


def guest_environment(engine: Launchable) -> dict[str, str]:
    """Environment variables under which the engine's interpreter finds tracereplay."""
    family = family_named(engine.family)
    # Overrides the user's value: without it the engine does not load the plugin.
    merged = {**family.environment(process_environment(engine.env), home() / "compiled"), ENABLED: "1"}
    if merged.pop("PYTHONDONTWRITEBYTECODE", None):
        # Compiling takes half a minute at every start; the result is kept apart from the user's own cache.
        merged.setdefault("PYTHONPYCACHEPREFIX", str(home() / "bytecode"))
    if family.entry_points is not None:
        overlay = overlay_for(engine.python, family.entry_points)
        merged["PYTHONPATH"] = os.pathsep.join(filter(None, [str(overlay), merged.get("PYTHONPATH", "")]))
        if in_use():
            merged[PACKAGES] = str(sealing_for(engine.python))
    return merged


def shell_environment(engine: Launchable) -> dict[str, str]:
    """What is to be set so that ``python`` is the engine's, and finds tracereplay; nothing is recorded by this."""
    whole = process_environment(engine.env)
    folders = [str(engine.python.parent), whole.get("PATH", "")]
    found = {name: whole[name] for name in engine.env} | {"PATH": os.pathsep.join(filter(None, folders))}
    entry_points = family_named(engine.family).entry_points
    if entry_points is not None:
        paths = [str(overlay_for(engine.python, entry_points)), whole.get("PYTHONPATH", "")]
        found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return found


def is_log(path: Path) -> bool:
    """Whether a file begins like an engine's log."""
    with path.open("rb") as file:
        return file.read(len(LOG_BEGINS)) == LOG_BEGINS


def _continued(log: Path, name: str) -> BinaryIO:
    """The log, opened for appending; a line of ours precedes each start of an engine."""
    file = log.open("a+b")
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    file.write(LOG_BEGINS + f"{name}, started {now}\n".encode())
    file.flush()
    return file


class EngineProcess:
    """Starts an engine and keeps it until `close`.

    Args:
        engine: what to start.
        model: checkpoint directory.
        settings: engine arguments, overriding the engine's own.
        log: file to which the engine's output is appended; a temporary one by default.
        taps: False leaves the model unchanged; then nothing can be recorded.
        inherited: names of settings that are left out if the engine does not know them.
        graphs: what is captured, if it captures CUDA graphs.
        spawned: called with its process id, before it has started.

    Raises:
        EngineFailed: it did not start; the message has its last lines.
        UsageError: it does not have a given setting.
        Unsupported: it runs in a way that cannot be recorded.
    """

    def __init__(
        self, engine: Launchable, *, model: Path, settings: Mapping[str, Any], log: Path | None = None,
        taps: bool = True, inherited: Collection[str] = (), graphs: GraphOptions = GraphOptions(),
        spawned: Callable[[int], None] = lambda pid: None,
    ) -> None:  # fmt: skip
        self.name = engine.name
        self._family = family_named(engine.family)
        self._log_file = (
            tempfile.NamedTemporaryFile("w+b", prefix="tracereplay-", suffix=".log")  # noqa: SIM115
            if log is None
            else _continued(log, engine.name)
        )
        self._log_begins = self._log_file.tell()
        self._process = subprocess.Popen(
            module_command(str(engine.python), self._family.driver),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log_file,
            env={
                **guest_environment(engine), **SAFE, **({} if taps else {NO_TAPS: "1"}),
                GRAPHS: json.dumps(graphs.as_dict()),
            },
            start_new_session=True, text=True, encoding="utf-8",
        )  # fmt: skip
        try:
            spawned(self._process.pid)
            self.info: Mapping[str, Any] = self.request(
                "start", model=str(model), settings={**engine.settings, **settings},
                inherited=sorted(inherited),
            )  # fmt: skip
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the driver."""
        return self._process.pid

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of ``texts`` by the engine's tokenizer."""
        ids: list[list[int]] = self.request("tokenize", texts=list(texts))
        return ids

    def generate(
        self, prompts: Sequence[Mapping[str, Any]], recording: PassRequest | None = None
    ) -> dict[str, Any]:
        """Generates once; see `engines.protocol.Driver.generate`."""
        asked = None if recording is None else recording.as_dict()
        result: dict[str, Any] = self.request("generate", prompts=list(prompts), recording=asked)
        return result

    def request(self, command: str, **arguments: Any) -> Any:
        """Sends a command and waits for its answer.

        Raises:
            EngineFailed: the process died, or the engine raised.
            TracereplayError: raised by the driver.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineFailed(self._death(command), self.last_lines())
        answer = json.loads(line)
        if "error" in answer:
            raise self._error(answer)
        return answer["ok"]

    def last_lines(self) -> str:
        """The end of what the engine printed."""
        return "\n".join(self._printed(20000)[-LAST_LINES:])

    def _printed(self, most: int) -> list[str]:
        """The lines that the engine printed, of at most the log's last ``most`` bytes."""
        self._log_file.flush()
        with open(self._log_file.name, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_begins, size - most))
            return file.read().decode("utf-8", "replace").splitlines()

    def close(self) -> None:
        """Ends the engine and every process that it started."""
        process = self._process
        if process.poll() is None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
        # Children share the engine's session; one that outlives it would keep ports and memory.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._log_file.close()

    def _death(self, command: str) -> str:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        doing = "starting" if command == "start" else "generating" if command == "generate" else command
        return f"The engine {self.name!r} {how} while {doing}; its last lines were:"

    def _error(self, answer: Mapping[str, Any]) -> TracereplayError:
        if answer.get("crashed"):
            if cause := self._family.root_cause(answer["error"], self._printed(_LOG_READ)):
                message = f"The engine {self.name!r} failed with {cause.error} (in its process {cause.process}):"
                return EngineFailed(message, "\n".join(cause.lines[-LAST_LINES:]))
            message = f"The engine {self.name!r} failed with {answer['error']}; its last lines were:"
            return EngineFailed(message, self.last_lines())
        kinds = {"UsageError": UsageError, "WorkloadError": WorkloadError, "Unsupported": Unsupported}
        error = kinds.get(str(answer.get("kind")), TracereplayError)(answer["error"])
        error.exit_code = answer["exit_code"]
        return error
