"""See operators as they run, give them recorded inputs. Runs inside the engine; knows no engine."""
