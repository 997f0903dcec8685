"""The result of a comparison, as frozen values that every report form reads; its JSON is a public interface."""

from tracereplay.verdict.findings import (
    Coverage,
    Divergence,
    EdgeFinding,
    Effect,
    NotCompared,
    OperatorFinding,
    Pairing,
    RoutingFinding,
    SettingDifference,
    Source,
)
from tracereplay.verdict.measures import CLASSES, ErrorClass, Metrics, Siblings, Tolerance, Worst
from tracereplay.verdict.proof import Attribution, Closure
from tracereplay.verdict.tokens import TokenDivergence, TokenFinding
from tracereplay.verdict.verdict import SCHEMA, Cause, Mode, Outcome, Verdict

__all__ = [
    "CLASSES", "SCHEMA", "Attribution", "Cause", "Closure", "Coverage", "Divergence", "EdgeFinding", "Effect",
    "ErrorClass", "Metrics", "Mode", "NotCompared", "OperatorFinding", "Outcome", "Pairing", "RoutingFinding",
    "SettingDifference", "Siblings", "Source", "TokenDivergence", "TokenFinding", "Tolerance", "Verdict", "Worst",
]  # fmt: skip
