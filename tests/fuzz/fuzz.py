"""Runs one fuzzer (needs atheris, of the extra ``fuzz``).

    python tests/fuzz/fuzz.py container|codec|msgpack [--seconds 600] [--work DIR]

It begins with the seeds and with what earlier runs of the same DIR found. An input that makes the target fail is
written to DIR/TARGET-crash-...; once the fault is mended it belongs into corpus/TARGET/, which test_corpus.py
replays.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tracereplay.trace", "tracereplay.storage", "tracereplay.dtypes"]):
    from seeds import write_seeds
    from targets import TARGETS, bounded

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="tracereplay-fuzz-"))
    seeds, found = work / f"{given.target}-seeds", work / f"{given.target}-found"
    if not seeds.exists():
        write_seeds(given.target, seeds)
    found.mkdir(exist_ok=True)
    options = [
        f"-max_total_time={given.seconds}", "-max_len=32768", "-timeout=20", "-rss_limit_mb=1500",
        "-print_final_stats=1", f"-artifact_prefix={work}/{given.target}-",
    ]  # fmt: skip
    folders = [str(folder) for folder in (found, seeds, CORPUS / given.target) if folder.exists()]
    atheris.Setup([sys.argv[0], *options, *folders], bounded(TARGETS[given.target]))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
