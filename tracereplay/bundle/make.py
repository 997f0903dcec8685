"""A bundle, made of two traces.

    golden, candidate ─▶ smaller ─▶ cleaned ─▶ redacted ─▶ compared ─▶ files ─▶ ZIP

All that people and programs read in it is made of the cleaned traces: what these do not say, nothing else can.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from tracereplay.bundle.allowed import Cleaner
from tracereplay.bundle.cleaned import write_cleaned
from tracereplay.bundle.manifest import MANIFEST, MODEL, POLICY, Listed, Manifest, shown_by
from tracereplay.bundle.readme import Told, listing, model_of, readme
from tracereplay.bundle.redaction import Redaction, refuse_tokens, without_elements, write_bare, write_withheld
from tracereplay.bundle.reproducer import write_first
from tracereplay.bundle.statistics import maps_of, statistics_of
from tracereplay.bundle.weights import write_model
from tracereplay.comparator import Policy, Rule, compare_traces
from tracereplay.comparator.details import Details
from tracereplay.comparator.numbers.policy_file import policy_text
from tracereplay.errors import UsageError
from tracereplay.gate import weights_directory
from tracereplay.launch import Launchable
from tracereplay.passes import INJECTED, ISOLATED, RECORD, RERUN
from tracereplay.reduction import reduce
from tracereplay.report import html
from tracereplay.report.html.texts import Decode
from tracereplay.storage.atomic import written
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.bundled import GOLDEN
from tracereplay.trace.into_pack import STRONG_LEVEL, pack_trace
from tracereplay.trace.withheld import Withheld, new_key
from tracereplay.verdict import Verdict

__all__ = ["Made", "make_bundle"]

_CANDIDATE = "candidate.pack"
_STORED = (".pack", ".safetensors")  # compressed already, or to be read where it lies
_TEXT = (".md", ".html", ".json", ".txt", ".py", ".toml")

Report = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """What a bundle came to be.

    Args:
        contents: what it says of itself.
        size: of the file, bytes.
    """

    contents: Manifest
    size: int


@dataclass(frozen=True)
class _Pair:
    """Two traces that show what the whole ones show, and what was made smaller."""

    golden: Path | str
    candidate: Path | str
    what: tuple[str, ...] = ()


def make_bundle(
    golden: Path | str, candidate: Path | str, out: Path, *, max_size: int, policy: Policy | None = None,
    redaction: Redaction | None = None, whole: bool = False, engine: Launchable | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}), model: Path | None = None, weights: bool = False,
    decoder: Callable[[Trace], Decode | None] = lambda trace: None, report: Report = lambda line: None,
) -> Made:  # fmt: skip
    """Writes a bundle, which appears at ``out`` only when it is whole.

    Args:
        golden: a recording.
        candidate: what is compared with it.
        out: the file.
        max_size: of it, bytes.
        policy: tolerances; None: the defaults.
        redaction: what else is kept out.
        whole: take the traces as they are; otherwise the smallest part that shows the same.
        engine: the candidate's, under which smaller traces are tried; None: nothing is generated.
        settings: engine arguments that the candidate was replayed with.
        model: the user's directory of the model, if it has moved.
        weights: copy the model, too.
        decoder: gives what makes text of golden's tokens, where that may be shown.
        report: called with each line of progress.

    Raises:
        UsageError: it cannot be made as asked, or would be larger than ``max_size``.
        TraceError: a trace cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="tracereplay-bundle-") as scratch:
        room = Path(scratch)
        pair = _Pair(golden, candidate)
        # What traces without tokens show may be another place, which a part of the whole ones need not have.
        late = redaction is Redaction.tokens
        if not whole and not late:
            pair = _smaller(golden, candidate, room / "reduced", engine, settings, policy, model, max_size, report)
        made = _Making(room, policy or Policy(), redaction, model, report)
        made.clean(golden, candidate, pair)
        if not whole and late:
            made.shrink(max_size)
        made.compare(decoder if redaction is None else lambda trace: None)
        if weights:
            made.add_model()
        return made.write(out, max_size)


def _smaller(
    golden: Path | str, candidate: Path | str, room: Path, engine: Launchable | None, settings: Mapping[str, Any],
    policy: Policy | None, model: Path | None, max_size: int, report: Report,
) -> _Pair:  # fmt: skip
    """The smallest traces that show the same; the whole ones if no part does.

    A replay in isolation is whole, too: it has no requests of which there could be fewer.
    """
    with open_trace(candidate) as trace:
        if ISOLATED in trace.passes:
            return _Pair(golden, candidate)
    found = reduce(
        golden, candidate, room, policy=policy, engine=engine, model=model, settings=settings,
        max_size=max_size * 3 // 4, progress=report,
    )  # fmt: skip
    if not found.same:
        return _Pair(golden, candidate, ("No part of the traces shows the same, so they are here as a whole.",))
    return _Pair(found.golden, found.candidate, found.what)


class _Making:
    """A bundle that is being made in a folder.

    Args:
        room: a folder of its own.
        policy, redaction, model, report: see `make_bundle`.
    """

    def __init__(
        self, room: Path, policy: Policy, redaction: Redaction | None, model: Path | None, report: Report
    ) -> None:
        self._room, self._policy, self._redaction, self._model = room, policy, redaction, model
        # Why a rule is there its author says in words of their own, which would stand in the verdict.
        self._told = replace(policy, rules=_silent(policy.rules), calibration=_silent(policy.calibration))
        self._report = report
        self._files = room / "files"
        self._files.mkdir()
        self._cleaner = Cleaner(texts=redaction is None)
        self._absent: list[str] = []

    # -- traces -----------------------------------------------------------------------------------------

    def clean(self, golden: Path | str, candidate: Path | str, pair: _Pair) -> None:
        """Writes cleaned traces; what the whole ones show is noted first."""
        self._report("Reading both traces")
        self._clean, self._withheld = self._folder("clean"), self._folder("withheld")
        with open_trace(golden) as mine:
            mine.require_recording()
            self._digest, self._checkpoint = mine.digest(), weights_directory(mine, self._model)
        whole = compare_traces(golden, candidate, self._policy)
        self._whole, self._reduced = shown_by(whole), pair.what
        self._given = pair.golden
        withheld = Withheld(new_key()) if self._redaction is Redaction.tokens else None
        with open_trace(pair.golden) as mine, open_trace(pair.candidate) as theirs:
            for trace in (mine, theirs) if withheld is not None else ():
                refuse_tokens(trace)
            theirs.offer_base(mine)
            replayed = mine.digest()
            self._golden = self._cleaned(mine, GOLDEN, withheld)
            with open_trace(self._golden) as kept:
                self._kept_digest = kept.digest()
            self._candidate = self._cleaned(theirs, _CANDIDATE, withheld, {replayed: self._kept_digest})

    def _cleaned(
        self, trace: Trace, name: str, withheld: Withheld | None, renamed: Mapping[str, str] = MappingProxyType({})
    ) -> Path:
        path = self._clean / name
        write_cleaned(trace, path, self._cleaner, renamed)
        if withheld is None:
            return path
        with open_trace(path) as known:
            write_withheld(known, self._withheld / name, withheld)
        return self._withheld / name

    def shrink(self, max_size: int) -> None:
        """Makes traces smaller that were cleaned already."""
        room = self._room / "reduced"
        pair = _smaller(self._golden, self._candidate, room, None, {}, self._told, None, max_size, self._report)
        self._reduced = pair.what
        if pair.golden == self._golden:
            return
        folder = self._folder("small")
        for name, path in ((GOLDEN, pair.golden), (_CANDIDATE, pair.candidate)):
            with open_trace(path) as trace:
                pack_trace(trace, folder / name, level=STRONG_LEVEL)
        self._golden, self._candidate = folder / GOLDEN, folder / _CANDIDATE

    def compare(self, decoder: Callable[[Trace], Decode | None]) -> None:
        """Compares what is left, and writes what people and programs read of it."""
        self._report("Comparing what is left of them")
        details = Details()
        with open_trace(self._given) as given:
            decode = decoder(given)
        with open_trace(self._golden) as mine, open_trace(self._candidate) as theirs:
            found = compare_traces(mine, theirs, self._told, details=details)
            self._verdict = self._named(found)
            limit = self._policy.logprob_max_abs
            self._put("report.html", html.render(self._verdict, details, decode=decode, limit=limit))
            self._put("verdict.json", self._verdict.to_json())
            if replace(self._told, strict=False) != Policy() and not self._told.strict:
                self._put(POLICY, policy_text(self._told, {}))
            self._put("environment/golden.txt", listing(mine))
            self._put("environment/candidate.txt", listing(theirs))
            if self._redaction is Redaction.values:
                self._statistics(mine, theirs, details)
                write_bare(mine, self._files / GOLDEN, self._folder("bare"))
                self._absent.append("There is no reproducer, since it would hold tensors.")
            else:
                self._absent += filter(None, [self._reproducer(mine)])
        if self._redaction is not Redaction.values:
            (self._files / GOLDEN).hardlink_to(self._golden)
        if self._redaction is Redaction.tokens:
            with open_trace(self._golden) as mine, open_trace(self._candidate) as theirs:
                pack_trace(theirs, self._files / _CANDIDATE, base=mine)
        with open_trace(self._files / GOLDEN) as kept:
            self._kept_digest = kept.digest()

    def _named(self, found: Verdict) -> Verdict:
        """The verdict with names that its reader has."""
        golden = replace(found.golden, trace="bug.zip")
        told = replace(found, golden=golden, candidate=replace(found.candidate, trace="candidate.trace"))
        return without_elements(told) if self._redaction is Redaction.values else told

    def _statistics(self, golden: Trace, candidate: Trace, details: Details) -> None:
        found = (name for name in (INJECTED, RERUN, ISOLATED, RECORD) if name in candidate.passes)
        judged = next(found, candidate.passes[0])
        rows = {"golden": statistics_of(golden, RECORD), "candidate": statistics_of(candidate, judged)}
        self._put("statistics.json", json.dumps(rows, indent=1) + "\n")
        if (maps := maps_of(details)) is not None:
            self._put("errors.json", json.dumps(maps, indent=1) + "\n")

    def _reproducer(self, golden: Trace) -> str | None:
        """Writes the reproducer; returns why there is none."""
        return write_first(golden, self._verdict, self._files / "reproducer", self._checkpoint)

    def add_model(self) -> None:
        """Copies the model."""
        self._report("Copying the model")
        if self._checkpoint is None or not self._checkpoint.is_dir():
            raise UsageError("The model is not where it was recorded; say with --model DIR where it is now.")
        folder = self._files / MODEL
        folder.mkdir()
        for _ in write_model(self._checkpoint, folder):
            pass

    # -- the archive ------------------------------------------------------------------------------------

    def write(self, out: Path, max_size: int) -> Made:
        """Writes the archive.

        Raises:
            UsageError: it is larger than ``max_size``, or cannot be written.
        """
        self._report("Writing the bundle")
        manifest = self._manifest()
        names = [*self._names(), "README.md"]
        with open_trace(self._golden) as mine, open_trace(self._candidate) as theirs:
            self._put("README.md", readme(Told(mine, theirs, self._verdict, names, self._policy.strict), manifest))
        manifest = replace(manifest, files={name: _listed(self._files / name) for name in self._names()})
        (self._files / MANIFEST).write_text(manifest.as_text(), encoding="utf-8")
        self._refuse_private()
        try:
            with written(out) as file:
                _zip(file, self._files, self._names())
                size = file.tell()
                if size > max_size:
                    raise UsageError(self._too_large(size, max_size))
        except OSError as error:
            raise UsageError(f"{out} cannot be written: {error.strerror}.") from error
        return Made(manifest, size)

    def _manifest(self) -> Manifest:
        with open_trace(self._golden) as mine:
            model = {name: value for name, value in model_of(mine).items() if value is not None}
        return Manifest(
            tracereplay=version("tracereplay"),
            made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            redacted=self._redaction,
            verdict=shown_by(self._verdict),
            whole=self._whole,
            golden={"whole": self._digest, "digest": self._kept_digest, "model": model},
            reduced=self._reduced,
            removed=(*_WORDS.get(self._redaction, ()), *self._cleaner.removed),
            absent=tuple(self._cleaner.sentence(line) for line in self._absent),
        )

    def _refuse_private(self) -> None:
        """Nothing that was removed stands in a text again, by a way that nobody thought of."""
        for name in self._names():
            if not name.endswith(_TEXT) or name.startswith(MODEL):
                continue
            text = (self._files / name).read_text(encoding="utf-8")
            if any(len(known) >= 8 and known in text for known in self._cleaner.private):
                raise UsageError(
                    f"The bundle was not written: its {name} would have named a path, a person or a machine. This "
                    "is a fault of tracereplay; please report it, with what the traces are, and not the traces."
                )

    def _too_large(self, size: int, max_size: int) -> str:
        largest = max(self._names(), key=lambda name: (self._files / name).stat().st_size)
        share = (self._files / largest).stat().st_size
        return (
            f"The bundle would take {size:,} bytes, and {max_size:,} are allowed (--max-size); its largest part "
            f"is {largest}, with {share:,} bytes. Record fewer requests or tokens, or allow more."
        )

    def _names(self) -> list[str]:
        return sorted(str(path.relative_to(self._files)) for path in self._files.rglob("*") if path.is_file())

    def _put(self, name: str, text: str) -> None:
        path = self._files / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _folder(self, name: str) -> Path:
        path = self._room / name
        path.mkdir()
        return path


# What a redaction keeps out, in the manifest's words.
_WORDS: Mapping[Redaction | None, Sequence[str]] = {
    None: (),
    Redaction.prompts: (
        "texts of prompts, stop texts and grammars. Token ids are here: who has the tokenizer can read them",
    ),
    Redaction.tokens: (
        "token ids, logprobs, texts, and the tensors of embeddings, the first layer, all that follows the last "
        "one, logits and the sampler. Digests under a key that was thrown away stand for tokens. Who has the "
        "model can find tokens that fit what is left of later layers",
    ),
    Redaction.values: (
        "the elements of all tensors, for which statistics.json and errors.json stand. Token ids and logprobs are "
        "here",
        "texts of prompts, stop texts and grammars",
    ),
}  # fmt: skip


def _silent(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    return tuple(replace(rule, because="") for rule in rules)


def _listed(path: Path) -> Listed:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return Listed(path.stat().st_size, digest.hexdigest())


def _zip(file: BinaryIO, folder: Path, names: Sequence[str]) -> None:
    """The files as an archive; the same files are the same bytes."""
    with zipfile.ZipFile(file, "w", allowZip64=False) as archive:
        for name, stored in _ordered(names):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            archive.writestr(info, (folder / name).read_bytes(), compresslevel=9)


def _ordered(names: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """What a reader looks at first comes first."""
    for name in sorted(names, key=lambda name: (name != "README.md", name.endswith(_STORED), name)):
        yield name, name.endswith(_STORED)
