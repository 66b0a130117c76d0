"""What is compiled: models, batches, and the machines to train on."""

from __future__ import annotations

import dataclasses

from benchmarks.aot.step.tasks import SMALL, TASKS, Size
from natjax.train.config.settings import MeshConfig, RunConfig
from natjax.train.engine.step import StepSetup


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Chips to train on.

    Attributes:
      chip: name of the chip.
      topology: as XLA names how they are wired.
      memory: bytes of memory that a program may use on one chip.
      attention: implementation that `natjax.na2d` takes there: all have kernels.
    """

    chip: str
    topology: str
    memory: int
    attention: str


# A v5e has 16 GB, of which its compiler gives 15.75 GiB to programs.
_V5E = {"chip": "v5e", "memory": int(15.75 * 2**30), "attention": "mosaic_tpu"}
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
      model: name of the model, or `SMALL`.
      machine: name in `MACHINES`.
      batch: images a step.
      task: name in `TASKS`.
      size: height and width of the images.
      fsdp: devices that parameters are split over.
      remat: whether blocks are recomputed in the backward pass.
      accumulate: parts of the batch.
      attention: implementation to take instead of the machine's own.
    """

    model: str
    machine: str
    batch: int
    task: str = "classification"
    size: Size = (224, 224)
    fsdp: int = 1
    remat: bool = False
    accumulate: int = 1
    attention: str | None = None

    @property
    def key(self) -> str:
        """Name in the table."""
        words = [self.model, self.machine, str(self.batch)]
        words[:0] = [self.task] if self.model == SMALL else []
        words += [f"fsdp={self.fsdp}"] if self.fsdp > 1 else []
        words += ["remat"] if self.remat else []
        words += [f"accumulate={self.accumulate}"] if self.accumulate > 1 else []
        words += [self.attention] if self.attention else []
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
    cases += [
        StepCase(
            task="segmentation",
            model="upernet_nat_tiny",
            machine=machine,
            batch=batch,
            size=(512, 512),
        )
        for batch in (16, 64)
        for machine in ("8xH100", "v5e:4x4")
    ]
    detector = StepCase(
        task="detection", model="mask_rcnn_nat_tiny", machine="8xH100", batch=16, size=(800, 1344)
    )
    cases += [dataclasses.replace(detector, machine=name) for name in ("8xH100", "v5e:4x4")]
    # What kernels are worth on TPUs.
    cases += [
        dataclasses.replace(case, attention="xla")
        for case in cases
        if case.machine != "8xH100" and case.accumulate == 1
    ]
    return cases


def _is_tight(case: StepCase) -> bool:
    return case.batch == 4096 or (case.model == "nat_base" and case.machine == "v5e:4x4")


def quick_cases() -> list[StepCase]:
    """Small steps with everything that could move activations: of classification, for each kind of
    machine, and one of each other task.

    Parameters are split, images are mixed, batches accumulate, and the maps are smaller than the
    window, so that they are padded. Segmentation adds norms over the batch, and resizes maps;
    detection adds loops over boxes, whose number differs between images.
    """
    small = StepCase(model=SMALL, machine="8xH100", batch=32, size=(24, 24), fsdp=4, accumulate=2)
    segmentor = dataclasses.replace(small, task="segmentation", size=(40, 40))
    detector = dataclasses.replace(
        small, task="detection", machine="v5e:2x4", batch=16, size=(64, 64), accumulate=1
    )
    return [small, dataclasses.replace(small, machine="v5e:2x4"), segmentor, detector]


def config_of(case: StepCase) -> RunConfig:
    """The preset of the model with the settings of the case."""
    preset = TASKS[case.task].preset(case.model, case.size)
    return dataclasses.replace(
        preset,
        batch_size=case.batch,
        accumulate=case.accumulate,
        mesh=MeshConfig(fsdp=case.fsdp),
        model=dataclasses.replace(preset.model, dtype="bfloat16", remat=case.remat),
    )


def setup_of(case: StepCase) -> StepSetup:
    """The step of a case."""
    return TASKS[case.task].setup(config_of(case))
