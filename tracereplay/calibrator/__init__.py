"""Derives tolerances: measures the noise between runs that should agree, and turns it into a policy."""

from tracereplay.calibrator.derive import Calibration, Run, calibrate
from tracereplay.launch.variations import NAMES, Variation, named_variation

__all__ = ["NAMES", "Calibration", "Run", "Variation", "calibrate", "named_variation"]
