"""Families of inference engines, by name.

family    what a family is
protocol  what a family's driver answers, and to which commands
vllm      vLLM
toy       a decoder in numpy: milliseconds, flaws on request
"""
