"""Every implementation against NATTEN's numbers: outputs, lse and all gradients."""

import functools
import json

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances
from calls import KERNELS, NAMES

import natjax

OPS = {1: natjax.na1d, 2: natjax.na2d, 3: natjax.na3d}
QK = {1: natjax.na1d_qk, 2: natjax.na2d_qk, 3: natjax.na3d_qk}
AV = {1: natjax.na1d_av, 2: natjax.na2d_av, 3: natjax.na3d_av}


# Interpreted kernels take seconds each, so these are quick tests, and the others slow ones.
INTERPRETED = ("na1d_dlse", "na2d_gqa", "un1d_dil3_ragged_rpb", "un2d_k5x3_rpb")


def cases(name):
    """Every record in float64, the committed selection in float32 too, which is slow for most.

    Kernels take no float64.
    """
    with np.load(goldens.COMMITTED / f"{name}.npz") as file:
        committed = {record["name"] for record in json.loads(str(file["index"]))}
    return [
        case(record, dtype, implementation, record["name"] in committed)
        for record in goldens.record(name, "index")
        for dtype in ("float64", "float32")
        for implementation in NAMES
        if (dtype == "float64" and implementation not in KERNELS)
        or (dtype == "float32" and record["name"] in committed)
    ]


def case(record, dtype, implementation, is_committed):
    name = record["name"]
    quick = name in INTERPRETED if implementation in KERNELS else dtype == "float64"
    quick &= implementation != "jax_triton"
    marks = [] if quick and is_committed else [pytest.mark.slow]
    if is_committed and implementation != "reference":
        marks.append(pytest.mark.oldest)
    return pytest.param(
        record, dtype, implementation, id=f"{name}-{dtype}-{implementation}", marks=marks
    )


def compare(actual, expected, dtype):
    for name, array in actual.items():
        np.testing.assert_allclose(
            array,
            expected[name],
            rtol=0,
            atol=tolerances.GOLDEN_ABSOLUTE[dtype] * max(1, np.abs(expected[name]).max()),
            err_msg=name,
        )


FUSED = [f"ops_na{n}d" for n in OPS]


@pytest.mark.parametrize(
    ("record", "dtype", "implementation"),
    [case for name in FUSED for case in cases(name)],
    indirect=["implementation"],
)
def test_fused(record, dtype, implementation, x64):
    arrays = goldens.under(f"ops_{record['op']}", record["name"])
    cast = {name: jnp.asarray(array, dtype) for name, array in arrays.items()}
    names = {"q": "query", "k": "key", "v": "value"}
    names |= {"add_k": "additional_keys", "add_v": "additional_values"}
    inputs = {names[name]: cast[name] for name in names if name in cast}
    op = functools.partial(
        OPS[len(record["shape"])],
        kernel_size=record["kernel_size"],
        stride=record["stride"],
        dilation=record["dilation"],
        is_causal=record["is_causal"],
        scale=record["scale"] if record["scale_given"] else None,
        return_lse=True,
        implementation=implementation,
    )

    @jax.jit
    def run(inputs):
        (out, lse), pull = jax.vjp(lambda inputs: op(**inputs), inputs)
        dlse = cast["dlse"] if record["has_dlse"] else jnp.zeros_like(lse)
        return out, lse, pull((cast["do"], dlse))[0]

    out, lse, gradients = run(inputs)
    assert out.dtype == lse.dtype == dtype
    actual = {"out": out, "lse": lse}
    actual |= {f"d{name}": gradients[names[name]] for name in names if name in cast}
    compare(actual, arrays, dtype)


@pytest.mark.parametrize(
    ("record", "dtype", "implementation"), cases("ops_unfused"), indirect=["implementation"]
)
def test_unfused_and_fused_with_bias(record, dtype, implementation, x64):
    """The old unfused operators; the fused op must give the same output and gradients."""
    golden = goldens.under("ops_unfused", record["name"])
    # Heads first there, heads last here.
    arrays = {k: v if k in ("rpb", "drpb") else np.moveaxis(v, 1, -2) for k, v in golden.items()}
    cast = {name: jnp.asarray(array, dtype) for name, array in arrays.items()}
    ndim, scale = len(record["shape"]), record["scale"]
    kwargs = {name: record[name] for name in ("kernel_size", "dilation", "is_causal")}
    kwargs["implementation"] = implementation
    names = [name for name in ("q", "k", "v", "rpb", "add_k", "add_v") if name in cast]
    einsum = functools.partial(jnp.einsum, precision="highest")

    def unfused(x):
        logits = QK[ndim](x["q"], x["k"], rpb=x.get("rpb"), scale=scale, **kwargs)
        neighbors = logits.shape[-1]
        if "add_k" in x:
            extra = einsum("b...nd,bend->b...ne", x["q"] * scale, x["add_k"])
            logits = jnp.concatenate([logits, extra], axis=-1)
        weights = jax.nn.softmax(logits)
        out = AV[ndim](weights[..., :neighbors], x["v"], **kwargs)
        if "add_v" in x:
            out += einsum("b...ne,bend->b...nd", weights[..., neighbors:], x["add_v"])
        return out, (logits, weights)

    def fused(x):
        extra = {"additional_keys": x.get("add_k"), "additional_values": x.get("add_v")}
        q, k, v = x["q"], x["k"], x["v"]
        return OPS[ndim](q, k, v, rpb=x.get("rpb"), scale=scale, **extra, **kwargs), None

    for function in (unfused, fused):

        @jax.jit
        def run(x, function=function):
            out, pull, aux = jax.vjp(function, x, has_aux=True)
            return out, aux, pull(cast["do"])[0]

        out, aux, gradients = run({name: cast[name] for name in names})
        actual = {"out": out} | {f"d{name}": gradients[name] for name in names}
        if aux is not None:
            logits, actual["attn"] = aux
            hidden = np.isneginf(arrays["logits"])
            np.testing.assert_array_equal(np.isneginf(logits), hidden)
            actual["logits"] = np.where(hidden, 0, logits)
        expected = arrays | {"logits": np.where(np.isneginf(arrays["logits"]), 0, arrays["logits"])}
        compare(actual, expected, dtype)


MERGES = [r for r in goldens.record("ops_attention", "index") if r["name"].startswith("merge")]


@pytest.mark.parametrize("record", MERGES, ids=lambda record: record["name"])
def test_merge_attentions(record, x64):
    arrays = goldens.under("ops_attention", record["name"])
    parts = sorted(name for name in arrays if name.startswith("out"))
    outputs = [jnp.asarray(arrays[name], jnp.float64) for name in parts]
    lses = [jnp.asarray(arrays[name.replace("out", "lse")], jnp.float64) for name in parts]
    out, lse = natjax.merge_attentions(outputs, lses)
    compare({"merged_out": out, "merged_lse": lse}, arrays, "float64")


def test_full_window_is_plain_attention(exact_implementation, x64):
    """NATTEN's plain attention, as the limiting case of a window as large as the input."""
    for name in ("attn_self", "attn_scale"):
        (record,) = (r for r in goldens.record("ops_attention", "index") if r["name"] == name)
        if record["len_q"] != record["len_kv"]:
            continue
        arrays = goldens.under("ops_attention", name)
        q, k, v = (jnp.asarray(arrays[x], jnp.float64) for x in "qkv")
        out, lse = natjax.na1d(
            q,
            k,
            v,
            record["len_q"],
            scale=record["scale"],
            return_lse=True,
            implementation=exact_implementation,
        )
        compare({"out": out, "lse": lse}, arrays, "float64")
