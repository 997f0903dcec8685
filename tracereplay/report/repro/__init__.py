"""Reproducers: one recorded call as a folder that runs without tracereplay.

DIR/repro.py               makes the call, compares, prints; needs torch, and the engine if it defines the call
DIR/inputs.safetensors     its arguments
DIR/expected.safetensors   its recorded results
"""

from tracereplay.report.repro.choice import choose_call, choose_kernel
from tracereplay.report.repro.folder import Reproducer, write_reproducer
from tracereplay.report.repro.kernel_script import reproduce_kernel
from tracereplay.report.repro.operator_script import reproduce_operator

__all__ = [
    "Reproducer", "choose_call", "choose_kernel", "reproduce_kernel", "reproduce_operator", "write_reproducer"
]  # fmt: skip
