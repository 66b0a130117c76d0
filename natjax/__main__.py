"""``python -m natjax`` is the command ``natjax``."""

import sys

from natjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
