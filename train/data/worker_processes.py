"""Worker processes that end when their parent does, however it ends."""

import multiprocessing
import os
import signal
import threading


def die_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end at once when it is gone: call it first in a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
