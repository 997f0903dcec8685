"""Recorded operators: vLLM's layers rebuilt from their recorded configuration, and run without a model.

known     which operators are supported, and their checks; used by both sides
world     the configuration and process groups that vLLM's layers need
build     instantiates vLLM's classes and loads their weights as its model loader does
handler   executes requests in the child
"""
