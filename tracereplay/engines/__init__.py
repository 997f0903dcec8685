"""Families of inference engines, by name.

family    what a family is
vllm      vLLM
toy       a decoder in numpy: milliseconds, flaws on request
"""
