"""Every error that tracereplay raises on purpose, as one tree.

    TracereplayError
    ├── UsageError            exit 2   the request cannot be carried out as given
    │   ├── WorkloadError              a prompt, sampling parameter or model directory is wrong
    │   ├── MissingWeights             an operator's weights are missing, or differ from those recorded
    │   ├── OtherWeights               the checkpoint differs from golden's; commands that judge give a verdict
    │   └── EngineNotFound             no engine of that name is registered
    ├── EnvironmentFailed     exit 4   an engine's environment could not be built
    ├── NothingRuns           exit 4   no recording runs that could be asked or told something
    ├── EngineFailed          exit 4   the engine did not start, or died
    ├── Unsupported           exit 2   the engine runs in a way that cannot be recorded
    ├── RecordingIncomplete   exit 4   the engine finished, but the trace lacks steps
    └── TraceError            exit 5   a trace cannot be read, or is unsafe to read
        ├── DamagedTrace               the bytes are not those that were written
        ├── NotATrace                  this is something else
        ├── BadBundle                  a ZIP file is not as `bundle` writes them
        └── UnsafeRequest              it asks for something that only the user may grant

Every message is a sentence: what was found, what was expected, what to do. ``exit_code`` is the exit code of the
command line.
"""

from __future__ import annotations

__all__ = [
    "BadBundle",
    "DamagedTrace",
    "EngineFailed",
    "EngineNotFound",
    "EnvironmentFailed",
    "MissingWeights",
    "NotATrace",
    "NothingRuns",
    "OtherWeights",
    "RecordingIncomplete",
    "TraceError",
    "TracereplayError",
    "UnsafeRequest",
    "Unsupported",
    "UsageError",
    "WorkloadError",
]

LONGEST = 1000  # characters of a message about a trace


class TracereplayError(Exception):
    """Base of all deliberate errors; its text is meant for the user."""

    exit_code = 2

    @property
    def brief(self) -> str:
        """The error in one line, for lists of failures."""
        return str(self)


class UsageError(TracereplayError):
    """The request cannot be carried out as given."""


class WorkloadError(UsageError):
    """A prompt, a sampling parameter or the model directory is wrong."""


class MissingWeights(UsageError):
    """An operator's weights are missing, or differ from those that the golden generation used."""


class OtherWeights(UsageError):
    """The checkpoint's weights differ from golden's, which is known before an engine starts.

    Args:
        message: a sentence.
        golden, candidate: digests of the weights.
    """

    def __init__(self, message: str, golden: str, candidate: str) -> None:
        super().__init__(message)
        self.golden, self.candidate = golden, candidate


class EngineNotFound(UsageError):
    """No engine of that name is registered."""


class Unsupported(UsageError):
    """The engine runs in a way that cannot be recorded; the message names the way out."""


class EnvironmentFailed(TracereplayError):
    """An engine's Python environment could not be built."""

    exit_code = 4


class NothingRuns(TracereplayError):
    """No recording runs that could be asked or told something."""

    exit_code = 4


class EngineFailed(TracereplayError):
    """The engine did not start, or died.

    Args:
        message: one sentence on what was being done.
        last_lines: the engine's own last lines of output, shown below the sentence.
    """

    exit_code = 4

    def __init__(self, message: str, last_lines: str = "") -> None:
        super().__init__(message)
        self.last_lines = last_lines

    @property
    def brief(self) -> str:
        """The sentence, with the last line that names an error."""
        lines = [line.strip() for line in self.last_lines.splitlines() if "Error" in line]
        words = str(self).partition("; its last lines")[0]
        return f"{words}: {lines[-1]}" if lines and lines[-1] not in words else words


class RecordingIncomplete(TracereplayError):
    """The engine finished its generation, but the trace lacks some of its steps; what it has is readable."""

    exit_code = 4


class TraceError(TracereplayError):
    """A trace cannot be read, or is unsafe to read.

    Args:
        message: a sentence. What it quotes from the trace may be megabytes long, so it is cut.
    """

    exit_code = 5

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= LONGEST else f"{message[:LONGEST]}...")


class UnsafeRequest(TraceError):
    """A trace asks for something that only the user may grant: code, classes, files, libraries, credentials."""


class DamagedTrace(TraceError):
    """The bytes of a trace are not the bytes that were written."""


class NotATrace(TraceError):
    """The path holds something other than a trace."""


class BadBundle(TraceError):
    """A ZIP file is not as `bundle` writes them, so that it is not safe to open, or does not hold what it says."""
