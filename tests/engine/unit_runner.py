"""What a file of units does when it is run: prints, as JSON, what each unit raised (null: nothing)."""

import json
import sys
import traceback


def run(units):
    """Runs those of ``units`` (a module's globals) that the command line names."""
    results = {}
    for name in sys.argv[1:]:
        try:
            results[name] = units[name]()
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))
