"""Models compile for seconds and run for milliseconds, so their tests do not optimise."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
