"""``python -m tracereplay``: the program, where the one of that name is not on the path."""

from __future__ import annotations

from tracereplay.cli.main import main

if __name__ == "__main__":
    main()
