"""`implementation=None` on a machine with a GPU: what runs is chosen when a program is lowered."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding, use_abstract_mesh

import natjax
from natjax.kernels import device
from natjax.kernels.backends.jax_triton import support

H100 = types.SimpleNamespace(
    platform="gpu", device_kind="NVIDIA H100 80GB HBM3", compute_capability="9.0"
)


@pytest.fixture
def machine_with_a_gpu(monkeypatch):
    """Where there is none, natjax is told that there is; arrays are committed to the CPU."""
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    if jax.default_backend() != "gpu":
        monkeypatch.setattr(device, "targets", lambda: (H100,))


@pytest.fixture
def x(machine_with_a_gpu):
    draws = np.random.default_rng(0).standard_normal((2, 9, 1, 8)).astype(np.float32)
    return jax.device_put(draws, jax.devices("cpu")[0])


def op_of(name, implementation):
    kwargs = {"kernel_size": 3, "implementation": implementation}
    return {
        "attention": lambda x: natjax.na1d(x, x, x, **kwargs),
        "qk": lambda x: natjax.na1d_qk(x, x, **kwargs),
        "av": lambda x: natjax.na1d_av(x[..., :3], x, **kwargs),
    }[name]


DERIVATIVES = {
    "value": lambda function: function,
    "gradient": lambda function: jax.grad(lambda x: jnp.sum(function(x) ** 2)),
    "forward mode of a jitted function": lambda function: (
        lambda x: jax.jvp(jax.jit(function), (x,), (jnp.cos(x),))
    ),
    "second derivative": lambda function: jax.grad(
        lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(function(x) ** 2))(x) ** 2)
    ),
    "vmapped gradient": lambda function: (
        lambda x: jax.vmap(jax.grad(lambda x: jnp.sum(function(x) ** 2)))(x[None])
    ),
}


@pytest.mark.oldest
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("op", ["attention", "qk", "av"])
def test_none_never_fails_with_arrays_on_the_cpu(op, derivative, x):
    derive = DERIVATIVES[derivative]
    actual, expected = (derive(op_of(op, name))(x) for name in (None, "xla"))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert {d.platform for d in a.devices()} == {"cpu"}
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("op", "kernels"),
    [
        ("attention", ["forward", "dquery", "dkeyvalue"]),
        ("qk", ["qk", "av", "av_transposed"]),
        ("av", ["av", "qk", "av_transposed"]),
    ],
)
def test_the_same_program_has_kernels_when_it_is_lowered_for_a_gpu(op, kernels, x, monkeypatch):
    # It cannot be lowered where JAX's plugin for CUDA is not installed.
    monkeypatch.setattr(support, "is_installed", lambda: False)

    def step(x):
        out, pull = jax.vjp(op_of(op, None), x)
        return out, pull(out)

    triton_call = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    # Pallas must know the chip to lower for.
    chip = AbstractDevice(device_kind=H100.device_kind, num_cores=132, platform="gpu")
    mesh = AbstractMesh((1,), ("x",), abstract_device=chip)
    here = SingleDeviceSharding(jax.devices()[0])
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    texts = {}
    for platform in ("cuda", "cpu"):
        export = jax.export.export(
            jax.jit(step), platforms=[platform], disabled_checks=[triton_call]
        )
        with use_abstract_mesh(mesh):
            texts[platform] = export(shape).mlir_module()
    for kernel in kernels:
        assert f"natjax_{kernel}" in texts["cuda"]
    assert "natjax_" not in texts["cpu"].replace("natjax_linear", "")


def test_a_name_means_that_implementation(x):
    jaxpr = str(jax.make_jaxpr(op_of("attention", "xla"))(x))
    assert "natjax_forward" not in jaxpr
    if jax.default_backend() != "gpu":
        with pytest.raises(ValueError, match="interpret mode"):
            op_of("attention", "pallas_triton")(x)


def test_threads_have_their_own_settings(interpreted):
    """Each traces with its own, and watches its own."""
    import threading

    from natjax.kernels.backends.triton_common.config import KernelConfig
    from natjax.kernels.tuning import settings

    x = jax.ShapeDtypeStruct((1, 40, 1, 8), jnp.float32)
    run = functools.partial(natjax.na1d, kernel_size=3, implementation="pallas_triton")
    barrier = threading.Barrier(2)
    found = {}

    def trace(side):
        chosen = {"forward": KernelConfig((side,), (side,))}
        with settings.using(chosen), settings.watching() as seen:
            barrier.wait()
            jax.eval_shape(lambda x: run(x, x, x), x)
            barrier.wait()
        found[side] = [r.config.tile for r in seen if r.kernel == "forward"]

    threads = [threading.Thread(target=trace, args=(side,)) for side in (16, 32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {16: [(16,)], 32: [(32,)]}


def barriers(function, x):
    return str(jax.make_jaxpr(function)(x)).count("optimization_barrier")


@pytest.mark.oldest
def test_what_is_computed_once_is_stored_in_both_directions_on_a_cpu():
    x = jnp.ones(3)
    assert barriers(jax.grad(lambda x: jnp.sum(device.computed_once(x) ** 2)), x) == 2


def test_other_compilers_know_better_what_to_store(machine_with_a_gpu):
    assert barriers(device.computed_once, jnp.ones(3)) == 0
