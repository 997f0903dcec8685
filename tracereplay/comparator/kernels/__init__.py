"""Kernels: inside an operator of two passes, and each replayed in isolation."""
