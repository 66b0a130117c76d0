"""What is compiled: models, batches, and the machines to train on."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from benchmarks.imagenet import step_setup
from natjax.backbones.nat import NAT, NATConfig
from natjax.train.config.settings import MeshConfig
from natjax.train.engine.network import split_network
from natjax.train.engine.step import StepSetup
from natjax.train.tasks.classification.config import ClassificationConfig
from natjax.train.tasks.classification.recipes import imagenet_preset


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Chips to train on.

    Attributes:
      chip: name of the chip.
      topology: as XLA names how they are wired.
      memory: bytes of memory that a program may use on one chip.
      attention: implementation that `natjax.na2d` takes there.
    """

    chip: str
    topology: str
    memory: int
    attention: str


# A v5e has 16 GB, of which its compiler gives 15.75 GiB to programs.
_V5E = {"chip": "v5e", "memory": int(15.75 * 2**30), "attention": "xla"}
MACHINES = {
    "8xH100": Machine(chip="h100", topology="1x1x8", memory=84_942_979_072, attention="triton"),
    "v5e:4x4": Machine(topology="v5e:4x4", **_V5E),
    "v5e:16x16": Machine(topology="v5e:16x16", **_V5E),
    "v5e:2x4": Machine(topology="v5e:2x4", **_V5E),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepCase:
    """A step on a machine.

    Attributes:
      model: name of the model, or "small" for one of a single block.
      machine: name in `MACHINES`.
      batch: images a step.
      image_size: side of the images.
      fsdp: devices that parameters are split over.
      remat: whether blocks are recomputed in the backward pass.
      accumulate: parts of the batch.
    """

    model: str
    machine: str
    batch: int
    image_size: int = 224
    fsdp: int = 1
    remat: bool = False
    accumulate: int = 1

    @property
    def key(self) -> str:
        """Name in the table."""
        words = [self.model, self.machine, str(self.batch)]
        words += [f"fsdp={self.fsdp}"] if self.fsdp > 1 else []
        words += ["remat"] if self.remat else []
        words += [f"accumulate={self.accumulate}"] if self.accumulate > 1 else []
        return " ".join(words)


def all_cases() -> list[StepCase]:
    """Every case of the table: as published, and what takes less memory."""
    cases = [
        StepCase(model=model, machine=machine, batch=batch)
        for model in ("nat_tiny", "nat_base")
        for batch in (1024, 4096)
        for machine in ("8xH100", "v5e:4x4", "v5e:16x16")
    ]
    tight = [c for c in cases if c.machine != "v5e:16x16" and _is_tight(c)]
    cases += [dataclasses.replace(case, remat=True) for case in tight]
    cases += [
        dataclasses.replace(case, accumulate=4 if case.batch == 4096 else 2) for case in tight
    ]
    cases.append(StepCase(model="nat_base", machine="8xH100", batch=1024, fsdp=8))
    return cases


def _is_tight(case: StepCase) -> bool:
    return case.batch == 4096 or (case.model == "nat_base" and case.machine == "v5e:4x4")


def quick_cases() -> list[StepCase]:
    """One small step for each kind of machine, with everything that could move activations.

    Parameters are split, images are mixed, batches accumulate, and the maps are smaller than the
    window, so that they are padded.
    """
    return [
        StepCase(model="small", machine=machine, batch=32, image_size=24, fsdp=4, accumulate=2)
        for machine in ("8xH100", "v5e:2x4")
    ]


def config_of(case: StepCase) -> ClassificationConfig:
    """The preset of the model with the settings of the case."""
    preset = imagenet_preset("nat_tiny" if case.model == "small" else case.model)
    return dataclasses.replace(
        preset,
        batch_size=case.batch,
        accumulate=case.accumulate,
        mesh=MeshConfig(fsdp=case.fsdp),
        model=dataclasses.replace(preset.model, dtype="bfloat16", remat=case.remat),
        data=dataclasses.replace(preset.data, image_size=case.image_size),
    )


def setup_of(case: StepCase) -> StepSetup:
    """The step of a case."""
    network = split_network(_small) if case.model == "small" else None
    return step_setup(config_of(case), network)


def _small() -> Any:
    config = NATConfig(dim=128, depths=(1,), num_heads=(8,), drop_path=0.1)
    return NAT(config, dtype="bfloat16", rngs=nnx.Rngs(0))
