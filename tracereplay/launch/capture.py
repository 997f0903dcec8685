"""What it takes to record engines that somebody else starts: traces, a room in memory, control, and variables.

A command's engines (`command`) and those of a user's own Python (`own`) find it by their environment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracereplay.engines.variables import CONTROL, GRAPHS, OPTIONS, RECORD_TO, SOCKET
from tracereplay.launch.asking import How
from tracereplay.launch.collection import Traces, check_collection
from tracereplay.launch.recording import Recording
from tracereplay.launch.release import our_version
from tracereplay.launch.room import Room
from tracereplay.recorder.flight import RUN
from tracereplay.recorder.options import GraphOptions, Options
from tracereplay.trace.sealed import own_recipient
from tracereplay.trace.withheld import Withheld

__all__ = ["Capture", "without_secrets"]

_SECRET = ("key", "token", "secret", "password", "credential", "auth")


class Capture:
    """Makes all of it; nothing has been recorded yet, and nothing runs.

    Args:
        out: trace to create, or the directory of a collection.
        command: what is recorded.
        engine: how traces describe the engine before it has described itself.
        options: how much is recorded.
        how: into which traces, and who may control it.

    The public attributes: ``traces``, ``room``, ``recording`` (which is to be started and stopped), and
    ``variables``, which engines must find in their environment.

    Raises:
        UsageError: the first trace cannot be created, or the socket cannot be made.
    """

    def __init__(
        self, out: Path, command: Sequence[str], engine: Mapping[str, Any], options: Options, how: How
    ) -> None:
        said = without_secrets(command)
        header = {
            "tracereplay": our_version(),
            "kind": "recording",
            "level": options.level,
            "engine": dict(engine),
        }
        if options.withhold is not None:
            said = [command[0], "..."]
            header["withheld"] = Withheld(options.withhold).said()
        header["command"] = said
        recipients = options.recipients
        if recipients:
            options = replace(options, recipients=(*recipients, own_recipient()))
        if how.collection:
            check_collection(out)
        self.traces = Traces(out, header, options, collection=how.collection, ring=how.ring, recipients=recipients)
        self.room = Room()
        if how.ring:  # for traces that are made when nobody is left to ask
            told = {"notes": options.told(), **options.header()}
            (self.room.path / RUN).write_text(json.dumps({**header, **told}))
        try:
            self.recording = Recording(
                self.traces, self.room, options, how.budget, said, control=how.control, paused=how.paused
            )
        except BaseException:
            self.traces.discard()
            self.room.remove()
            raise
        graphs = GraphOptions("nothing", options.sites, options.sides, withhold=options.withhold is not None)
        socket = self.recording.socket
        self.variables: Mapping[str, str] = {
            RECORD_TO: str(self.traces.current),
            OPTIONS: json.dumps(options.as_dict()),
            GRAPHS: json.dumps(graphs.as_dict()),
            CONTROL: str(self.room.path),
            **({} if socket is None else {SOCKET: str(socket.path)}),
        }


def without_secrets(command: Sequence[str]) -> list[str]:
    """A command line without secrets: ``--api-key ...``."""
    said: list[str] = []
    hide = False
    for word in command:
        name, equals, _ = word.partition("=")
        secret = any(part in name.lower() for part in _SECRET) and (equals or name.startswith("-"))
        said.append("..." if hide else f"{name}=..." if secret and equals else word)
        hide = bool(secret) and not equals and not hide
    return said
