"""Executing recorded calls one by one, without an engine or a model, in a dedicated process.

    analyst's side                               candidate's interpreter
    alone.sandbox.Sandbox ──request──▶ socket    alone.child.service ──▶ the handler's module
                           ◀──answer───

A handler is a module with ``run(request) -> answer`` and, if it needs preparation,
``prepare(setup) -> info``. Requests and answers are plain data with tensors in them (`wire`).
"""
