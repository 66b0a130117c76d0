"""Compiled programs, kept from one run to the next in the user's cache."""

import hashlib
import os
import platform
from pathlib import Path

import jax

from natjax.train import console
from natjax.train.cluster import processes
from natjax.train.files import user_cache

# Beyond it JAX drops what was used longest ago. The programs of the preset digits take 1.8 MB.
_MOST_BYTES = 2 * 2**30


def use_compilation_cache(wanted: bool) -> None:
    """Let JAX keep what it compiles in ``~/.cache/natjax/compiled``, safely for runs side by side.

    A folder that was chosen already (JAX_COMPILATION_CACHE_DIR) stays. A job of several processes
    gets none of ours: where one of them finds a program and another does not, the one that compiles
    waits for the other, since XLA lets the processes of a job share the choice of GPU kernels.

    Args:
      wanted: False leaves JAX as it is.
    """
    if not wanted or processes.count() > 1 or jax.config.jax_compilation_cache_dir is not None:
        return
    folder = user_cache() / "compiled" / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        console.warn(f"compiled programs are not kept: {folder} cannot be written")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # With a limit JAX locks the folder while it reads or writes, and without does neither.
    jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)


def _machine() -> str:
    """Return a name for this kind of CPU: programs compiled for one may not run on another.

    JAX tells GPUs and TPUs apart by itself, but not CPUs, whose homes may be shared.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    # "flags" on x86, "Features" on Arm.
    features = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    described = " ".join([platform.machine(), platform.processor(), *features])
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
