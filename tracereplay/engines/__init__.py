"""One adapter per engine family: finds operators, rows and steps; forces tokens."""
