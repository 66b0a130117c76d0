"""Settings every test runs under: strict JAX, eight CPU devices, deterministic properties."""

import hypothesis
import jax
import jaxtyping
import pytest

# Before first use of a device. Eight, so that sharding is exercised everywhere.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "default", derandomize=True, deadline=None, max_examples=30, print_blob=True
)
hypothesis.settings.load_profile("default")


@pytest.fixture
def x64():
    """Run the test with 64-bit types enabled."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """Turn the run-time shape checks off, for tests that pass wrong shapes on purpose."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _quick_compilation(request):
    """Most tests compile for seconds and run for milliseconds, so they compile without optimising.

    Those marked ``optimised`` compile as users do.
    """
    quick = request.node.get_closest_marker("optimised") is None
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def mesh_of():
    """Makes a mesh of CPU devices, of which there are eight on every machine."""

    def make(sizes, names, kind):
        return jax.make_mesh(
            sizes, names, axis_types=(kind,) * len(sizes), devices=jax.devices("cpu")
        )

    return make
