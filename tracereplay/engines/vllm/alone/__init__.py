"""Recorded operators: vLLM's layers rebuilt from their recorded configuration, and run without a model.

known     which, from what, and on what inputs; both sides ask here
world     what vLLM's layers expect around them
build     vLLM's classes, their weights loaded as its model loader does it
handler   what the child does with a request
"""
