"""Settings every test runs under: strict JAX, eight CPU devices, deterministic properties."""

import hypothesis
import jax
import pytest

# Before first use of a device. Eight, so that sharding is exercised everywhere.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "default", derandomize=True, deadline=None, max_examples=50, print_blob=True
)
hypothesis.settings.load_profile("default")


@pytest.fixture
def x64():
    """Run the test with 64-bit types enabled."""
    with jax.enable_x64(True):
        yield
