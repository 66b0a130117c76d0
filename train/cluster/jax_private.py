"""Everything of JAX that natjax uses and that has no public name.

Nothing else of training imports from `jax._src`, so what a new JAX may break without notice is what
this file holds. `tests/train/cluster/test_jax_private.py` says what must be true of each name, on
the oldest JAX and on the newest.
"""

from typing import Any


def coordination_client() -> Any:
    """Return the client of the service by which the processes of a job coordinate; None if alone.

    It has ``key_value_set``, ``key_value_dir_get`` and ``wait_at_barrier``, which JAX offers in
    public by collectives alone, and no thread beside the one that trains may enter a collective.
    """
    from jax._src import distributed

    return distributed.global_state.client
