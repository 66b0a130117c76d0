"""UPerNets of the goldens: their configurations as models of ours, and their state dicts."""

import goldens
import jax.numpy as jnp
import torch_keys
from flax import nnx

from natjax import NATConfig, UPerNet, UPerNetConfig

NAMES = ("upernet_nat", "upernet_dinats")
_STATISTICS = {
    "running_mean": "mean",
    "running_var": "var",
    "num_batches_tracked": "num_batches",
}


def config(name):
    """The config of a golden model."""
    record = goldens.record(name, "config")
    theirs, head, auxiliary = (record[k] for k in ("backbone", "decode_head", "auxiliary_head"))
    backbone = NATConfig(
        dim=theirs["embed_dim"],
        depths=tuple(theirs["depths"]),
        num_heads=tuple(theirs["num_heads"]),
        kernel_size=theirs["kernel_size"],
        dilations=tuple(map(tuple, theirs.get("dilations", ()))),
        mlp_ratio=theirs["mlp_ratio"],
        layer_scale=theirs.get("layer_scale"),
        overlapping=theirs["type"] != "DiNAT_s",
        num_classes=0,
        output_norms=True,
    )
    return UPerNetConfig(
        backbone=backbone,
        num_classes=head["num_classes"],
        channels=head["channels"],
        pool_scales=tuple(head["pool_scales"]),
        dropout=head["dropout_ratio"],
        auxiliary_channels=auxiliary["channels"],
        auxiliary_weight=auxiliary["loss_decode"]["loss_weight"],
    )


def model(name, param_dtype=jnp.float32):
    """A golden model with its parameters and running statistics."""
    made = nnx.eval_shape(lambda: UPerNet(config(name), param_dtype=param_dtype, rngs=nnx.Rngs(0)))
    set_arrays(made, to_ours(goldens.under(name, "param")))
    return made


def set_arrays(module, ours):
    """Set all parameters and statistics of a module, in place, from arrays by our names."""
    state = nnx.to_flat_state(nnx.state(module))
    assert {".".join(map(str, path)) for path, _ in state} == ours.keys()
    for path, variable in state:
        array = ours[".".join(map(str, path))]
        assert array.shape == variable.shape, path
        variable.set_value(jnp.asarray(array, variable.dtype))


def to_ours(arrays):
    """Parameters, statistics or gradients under their keys, in our names and layouts."""
    found = {}
    for key, array in arrays.items():
        parts = key.split(".")
        if "psp_modules" in parts:
            del parts[3]  # decode_head.psp_modules.{i}.1: the pooling comes first
        if parts[-1] in _STATISTICS:
            found[".".join([*parts[:-1], _STATISTICS[parts[-1]]])] = array
        else:
            found |= torch_keys.to_ours({".".join(parts): array})
    return found


def named(state):
    """``{dotted path: array}`` of a state."""
    flat = nnx.to_flat_state(state)
    return {".".join(map(str, path)): variable.get_value() for path, variable in flat}


def nhwc(array):
    """A map of theirs in our layout."""
    return jnp.asarray(array.transpose(0, 2, 3, 1))
