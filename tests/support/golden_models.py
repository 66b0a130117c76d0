"""The official classes' configurations as models of ours, and their files as people have them."""

import goldens
import jax.numpy as jnp
from flax import nnx

import natjax
from natjax import NAT, Isotropic, IsotropicConfig, NATConfig
from natjax.backbones.variants import alternate
from natjax.weights.torchfile.writer import write_torch

FAMILIES = ("nat", "dinat", "dinats", "isotropic", "vit_rpb")


def abstract(family, cfg, **options):
    """The model of a configuration, with shapes for values."""
    record = goldens.record(family, f"{cfg}/config")
    return nnx.eval_shape(lambda: build(record, **options))


def build(record, *, output_norms=False, param_dtype=jnp.float32, **changes):
    """The model of a record, with freshly drawn parameters."""
    common = {
        "dim": record["embed_dim"],
        "mlp_ratio": float(record["mlp_ratio"]),
        "kernel_size": record["kernel_size"],
        "num_classes": 0 if output_norms else record["num_classes"],
        "output_norms": output_norms,
        **changes,
    }
    options = {"param_dtype": param_dtype, "rngs": nnx.Rngs(0)}
    if "depths" in record:
        config = NATConfig(
            depths=tuple(record["depths"]),
            num_heads=tuple(record["num_heads"]),
            dilations=tuple(map(tuple, record.get("dilations", ()))),
            layer_scale=record.get("layer_scale"),
            overlapping=record["family"] != "dinats",
            **common,
        )
        return NAT(config, **options)
    common = {"input_size": record["img_size"], **common}
    config = IsotropicConfig(
        depth=record["depth"],
        num_heads=record["num_heads"],
        dilations=alternate((record["depth"],), (record["dilation"] or 1,))[0],
        patch_size=record["patch_size"],
        **common,
    )
    return Isotropic(config, **options)


def official(family, cfg):
    """Official state dict of a configuration, without the index buffers of ViT-RPB."""
    return goldens.under(family, f"{cfg}/param")


def backbone(family, cfg):
    """State dict of the detection backbone of a configuration."""
    shared = {
        k: v for k, v in official(family, cfg).items() if not k.startswith(("norm.", "head."))
    }
    return shared | goldens.under(family, f"{cfg}/backbone/param")


def loaded(folder, family, cfg, **options):
    """The model of a configuration, its parameters by way of a PyTorch file."""
    path = folder / f"{family}-{cfg}.pth"
    write_torch(path, official(family, cfg))
    model = abstract(family, cfg, **options)
    natjax.load_weights(model, path)
    return model
