"""``tracereplay compare``: compare two existing traces."""

from __future__ import annotations

from typing import Annotated

import typer

from tracereplay.cli.checks import check_json, policy_of, rules_words
from tracereplay.cli.options import (
    Everything,
    JsonFile,
    Model,
    PolicyFile,
    Strict,
    UseOracle,
    refuse_given,
)
from tracereplay.cli.output import deliver
from tracereplay.comparator import compare_traces

__all__ = ["compare"]


def compare(
    context: typer.Context,
    golden: Annotated[str, typer.Argument(metavar="GOLDEN", help="The trusted recording.", show_default=False)],
    candidate: Annotated[
        str,
        typer.Argument(metavar="CANDIDATE", help="A replay of GOLDEN, or another recording.", show_default=False),
    ],
    policy: PolicyFile = None,
    strict: Strict = False,
    oracle: UseOracle = False,
    model: Model = None,
    everything: Everything = False,
    json_file: JsonFile = None,
) -> None:
    """Compare two traces and give the verdict; no engine is started."""
    if not oracle:
        refuse_given(context, ["model"], "Only --oracle reads weights")
    rules = policy_of(policy, strict)
    check_json(json_file)
    verdict = compare_traces(golden, candidate, rules, oracle=oracle, model=model)
    whole = "tracereplay", "compare", golden, candidate, *rules_words(policy, strict), "--all"
    raise typer.Exit(deliver(verdict, json_file, everything=everything, whole=whole, model=model))
