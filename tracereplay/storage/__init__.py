"""Where traces and checkpoints live."""
