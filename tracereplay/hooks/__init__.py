"""Observe operators as they run, and feed them recorded inputs. Runs inside any engine."""
