"""``python -m tracereplay.alone.child FD``: what `alone.sandbox` starts."""

import sys

from tracereplay.alone.child.service import serve

if __name__ == "__main__":
    serve(int(sys.argv[1]))
