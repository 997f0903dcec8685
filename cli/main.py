"""The ``tracereplay`` program: calls the verb that is asked for, and reports every error as a sentence.

Exit codes: 0 match, 1 diverged, 2 wrong usage, 3 inconclusive, 4 the engine or this machine failed,
5 unreadable or unsafe trace, 70 internal error, 130 interrupted, 141 standard output was closed early, whatever
the verdict.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.text import Text

from tracereplay.cli.console import stderr
from tracereplay.cli.streams import OutputClosed, discard_output, flush_output, noticing_closed_output, prepare
from tracereplay.cli.verbs import Verbs
from tracereplay.errors import EngineFailed, TracereplayError, UsageError
from tracereplay.report.clean import clean

__all__ = ["app", "main"]

INTERNAL, INTERRUPTED, OUTPUT_CLOSED = 70, 130, 141
EXIT_CODES = (
    "Exit codes: 0 match, 1 diverged, 2 wrong usage, 3 inconclusive, 4 the engine or this machine failed, "
    "5 a trace cannot be read or is unsafe to read, 70 internal error, 130 interrupted, "
    "141 standard output was closed early."
)


class _Interrupted(Exception):
    """Ctrl-C, under a name that typer has no opinion on."""


class _Program(Verbs):
    """Why not leave it to typer: it ends Ctrl-C and a closed pipe with 1, which means *diverged* here."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with noticing_closed_output():  # --help writes here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        try:
            with noticing_closed_output():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


app = typer.Typer(
    cls=_Program,
    help="Record every operator of an LLM generation, replay it under another engine, and find the operator "
    "that computes something different.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # its imports cost as much as rich's, for a word that few ask for

        typer.echo(f"tracereplay {version('tracereplay')}")
        raise typer.Exit


@app.callback()
def _program(
    version_: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; also accepted after a command.")
    ] = False,
    identity: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Keys that open encrypted traces, as age-keygen writes them; also accepted after a command.",
            show_default=False,
        ),
    ] = None,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; ends the process with its exit code."""
    words, debug = _without_debug(list(sys.argv[1:] if arguments is None else arguments))
    words, identity = _without_identity(words)
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    prepare()
    try:
        if identity is not None:
            _identify(identity)
        _run(words)
    except OutputClosed:
        discard_output()
        sys.exit(OUTPUT_CLOSED)
    except _Interrupted:
        _say("Interrupted.")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _say(_sentence(error))
        if isinstance(error, EngineFailed):
            _quote(error.last_lines, whole="--log" in words)
        sys.exit(_exit_code(error))


def _run(words: list[str]) -> None:
    try:
        app(words, prog_name="tracereplay")
    except SystemExit:
        flush_output()
        raise


def _stop(number: int, frame: object) -> NoReturn:
    """Ends the program by an exception, so that whoever holds an engine closes it on the way out.

    Why ignore what follows: a second Ctrl-C would cut that short and leave the engine's processes behind.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if number == signal.SIGTERM:
        sys.exit(128 + number)
    raise KeyboardInterrupt


def _without_debug(words: list[str]) -> tuple[list[str], bool]:
    """The arguments without ``--debug``, which may appear anywhere before ``--``."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return kept + words[end:], len(kept) < end


def _without_identity(words: list[str]) -> tuple[list[str], str | None]:
    """The arguments without ``--identity FILE``, which may appear anywhere before ``--``, and the file."""
    end = words.index("--") if "--" in words else len(words)
    kept: list[str] = []
    found: str | None = None
    given = iter(words[:end])
    for word in given:
        name, equals, value = word.partition("=")
        if name != "--identity":
            kept.append(word)
        elif equals:
            found = value
        else:
            found = next(given, "")
    return kept + words[end:], found


def _identify(path: str) -> None:
    """Opens what follows with the keys in a file, in the engines too that are started."""
    if not path:
        raise UsageError("--identity needs a file with the keys that open encrypted traces.")
    sealed = importlib.import_module("tracereplay.trace.sealed")  # loaded only by those who ask for it
    sealed.use_identity(Path(path))
    os.environ[sealed.IDENTITY] = str(Path(path).resolve())


def _say(sentence: str) -> None:
    lines = [clean(line) for line in sentence.splitlines()]
    stderr.print(Text("\n".join(lines)), soft_wrap=True)


def _quote(lines: str, whole: bool) -> None:
    """Prints the engine's last lines without colours and control characters."""
    for line in lines.splitlines():
        stderr.print(Text("    " + clean(Text.from_ansi(line).plain)), style="dim", soft_wrap=True)
    if lines and not whole:
        _say("Run the same command with --log FILE to keep all of its output.")


def _sentence(error: Exception) -> str:
    if isinstance(error, TracereplayError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"The operating system reported an error: {where}{error.strerror}."
    return (
        f"This is an internal error in tracereplay, please report it: {type(error).__name__}: {error}\n"
        "Run the same command with --debug to see where it happened."
    )


def _exit_code(error: Exception) -> int:
    if isinstance(error, TracereplayError):
        return error.exit_code
    return EngineFailed.exit_code if isinstance(error, OSError) and error.strerror else INTERNAL


if __name__ == "__main__":
    main()
