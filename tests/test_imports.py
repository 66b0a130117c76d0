"""What importing natjax costs and offers."""

import os
import pathlib
import subprocess
import sys

import natjax


def modules_after(statement):
    """Names of the modules loaded by a statement, in a fresh interpreter."""
    code = f"{statement}; import sys; print(*sys.modules)"
    command = [sys.executable, "-P", "-c", code]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_public_names_are_there_and_no_others():
    documented = {
        "NeighborhoodAttention1D",
        "NeighborhoodAttention2D",
        "NeighborhoodAttention3D",
        "create_model",
        "explain",
        "list_models",
        "merge_attentions",
        *(f"na{n}d{suffix}" for n in (1, 2, 3) for suffix in ("", "_qk", "_av")),
    }
    assert documented <= set(natjax.__all__)
    for name in natjax.__all__:
        assert getattr(natjax, name) is not None
    assert set(natjax.__all__) <= set(dir(natjax))


def test_unknown_names_raise_attribute_error():
    assert not hasattr(natjax, "na4d")


def test_importing_natjax_is_lazy():
    assert not {"jax", "flax", "numpy"} & modules_after("import natjax")


def test_a_call_on_a_cpu_does_not_wait_for_pallas():
    call = "import jax, natjax; x = jax.numpy.ones((1, 5, 1, 4)); natjax.na1d(x, x, x, 3)"
    here = f"import os; os.environ.pop('NATJAX_INTERPRET', None); {call}"
    loaded = modules_after(f"import os; os.environ['JAX_PLATFORMS'] = 'cpu'; {here}")
    assert "natjax.kernels.backends.xla" in loaded
    assert (
        not {"natjax.kernels.backends.pallas_triton", "jax.experimental.pallas", "triton"} & loaded
    )


def test_models_need_no_training_library():
    loaded = modules_after("import natjax; natjax.create_model; natjax.na2d")
    foreign = (
        "torch",
        "tensorflow",
        "tensorflow_datasets",
        "grain",
        "tyro",
        "matplotlib",
        "sklearn",
    )
    assert not loaded.intersection(foreign)


def test_the_tests_run_on_the_installed_package():
    """In `scripts/test-wheel` the source tree must be out of reach."""
    expected = os.environ.get("NATJAX_INSTALLED")
    where = pathlib.Path(natjax.__file__).parent
    assert expected is None or where == pathlib.Path(expected)
