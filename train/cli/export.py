"""Weights of a run as a file: the command ``natjax export``."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx

from natjax.train import console
from natjax.train.checkpoint.checkpointer import restore
from natjax.train.checkpoint.run_folder import RunFolder
from natjax.train.data.datasets import get_spec
from natjax.train.engine.functional import model_builder
from natjax.train.engine.state import weights_item
from natjax.train.errors import UserError
from natjax.weights.load import named_params
from natjax.weights.save import check_target, default_naming, write_weights


def export_run(
    path: Path,
    out: Path,
    *,
    step: int | None = None,
    weights: str = "ema",
    naming: str | None = None,
) -> None:
    """Write the weights of a checkpoint to a file that `natjax.load_weights` or PyTorch reads.

    Args:
      path: The run folder.
      out: ``.safetensors``, or ``.pth`` for PyTorch; replaced at once.
      step: Step of the checkpoint; None takes the newest sound one.
      weights: ``"ema"`` (averaged) or ``"raw"``.
      naming: ``"natjax"``, ``"official"`` or ``"hf"``; None is official for PyTorch's format and
        natjax for safetensors.

    Raises:
      UserError: there is no such run or checkpoint.
      WeightsError: the file cannot be written so.
    """
    naming = naming or default_naming(out)
    target = check_target(out, naming)
    console.quiet_libraries()
    folder = RunFolder(path)
    config = folder.read_config()
    model = nnx.eval_shape(model_builder(config.model, get_spec(config.data), config.seed))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        name: jax.ShapeDtypeStruct(param.shape, param.dtype, sharding=one)
        for name, param in named_params(model).items()
    }
    item = weights_item(config, weights)
    restored = restore(folder.checkpoints, {item: shapes}, step=step)
    if restored is None:
        raise UserError(f"{path} has no checkpoint yet; train until the first one is written")
    arrays = {name: np.asarray(value) for name, value in restored.items[item].items()}
    count = write_weights(target, arrays, model.config, naming=naming)
    console.say(
        f"{target}: {count} arrays with {naming} names, {weights} weights of step {restored.step}"
    )
