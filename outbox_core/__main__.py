"""`python -m outbox_core` is the command `outbox`."""

import sys

from outbox_core.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
