"""Official state dicts as Hugging Face's NAT and DiNAT have them, written apart from natjax.

By the table in transformers 4.36: query, key and value are layers of their own, the two layer
scales are rows of one parameter, and the family's name comes before all but the classifier.
"""

import re

import numpy as np

RENAMES = [
    (r"^patch_embed\.proj\.(\d)\.", r"embeddings.patch_embeddings.projection.\1."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^levels\.(\d+)\.blocks\.(\d+)\.", r"encoder.levels.\1.layers.\2."),
    (r"^levels\.(\d+)\.downsample", r"encoder.levels.\1.downsample"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.rpb$", ".attention.self.rpb"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^norm\.", "layernorm."),
    (r"^head\.", "classifier."),
]


def to_hf(arrays, family):
    """Their ``{key: array}`` in transformers' names; ``family`` is ``"nat"`` or ``"dinat"``."""
    result = {}
    for key, array in arrays.items():
        for new, part in _parts(key, array, arrays):
            for pattern, replacement in RENAMES:
                new = re.sub(pattern, replacement, new)
            if norm := re.match(r"norm(\d)\.(.*)", new):
                new = f"hidden_states_norms.stage{int(norm[1]) + 1}.{norm[2]}"
            result[new if new.startswith("classifier") else f"{family}.{new}"] = part
    return result


def _parts(key, array, arrays):
    if ".attn.qkv." in key:
        path, _, last = key.partition(".attn.qkv.")
        names = ("query", "key", "value")
        third = len(array) // 3
        for i, name in enumerate(names):
            yield f"{path}.attention.self.{name}.{last}", array[i * third : (i + 1) * third]
    elif key.endswith("gamma1"):
        both = np.array([array, arrays[key.replace("gamma1", "gamma2")]])
        yield key.replace("gamma1", "layer_scale_parameters"), both
    elif not key.endswith("gamma2"):
        yield key, array
