"""``python -m tracereplay.guest.alone FD``: what `launch.sandbox` starts."""

import sys

from tracereplay.guest.alone.service import serve

if __name__ == "__main__":
    serve(int(sys.argv[1]))
