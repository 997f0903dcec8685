"""Earns tolerances: measures the noise between runs that ought to agree, and makes a policy of it."""

from tracereplay.calibrator.calibrate import Calibration, Run, calibrate
from tracereplay.calibrator.variations import NAMES, Variation, named_variation

__all__ = ["NAMES", "Calibration", "Run", "Variation", "calibrate", "named_variation"]
