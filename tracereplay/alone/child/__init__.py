"""Executing recorded calls one by one, without an engine and without a model, in a process made for it.

    analyst's side                               candidate's interpreter
    alone.sandbox.Sandbox ──request──▶ socket    alone.child.service ──▶ the handler's module
                           ◀──answer───

A handler is a module with ``run(request) -> answer`` and, if it has something to make ready,
``prepare(setup) -> info``. Requests and answers are plain data with tensors in them (`wire`).
"""
