"""`python -m homeport`: the same as the command `homeport`."""

import sys

from .server.cli import main

if __name__ == "__main__":
    sys.exit(main())
