"""The command ``natjax``; its commands are in `natjax.train.cli`, `natjax.weights`, `natjax`."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: Arguments without the program's name; by default those of the process.

    Returns:
      The exit code: 0 done, 1 something failed on the way, 2 wrong use or a full disk, 130
      interrupted, 143 stopped by SIGTERM.
    """
    # The one place where natjax imports training, which imports natjax.
    from natjax.train.cli.main import run_command

    return run_command(sys.argv[1:] if argv is None else argv)
