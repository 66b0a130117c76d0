"""Make ``timm_augment.npz`` and ``timm_training.npz`` with timm itself; README.md says with which.

Every number here is drawn or computed by timm (and by torchvision's transforms where timm uses
them); only inputs and the bookkeeping are this script's.
"""

import importlib
import importlib.util
import itertools
import json
import pathlib
import random
import sys
import types
from unittest import mock

import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).parent
POLICY = "rand-m9-mstd0.5-inc1"
FILTERS = (Image.BILINEAR, Image.BICUBIC)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bare(*packages: str) -> None:
    """Let submodules be imported without running their package's ``__init__``.

    Those of timm and torchvision bring in every model and compiled operators.
    """
    for name in packages:
        sys.modules[name] = importlib.util.module_from_spec(importlib.util.find_spec(name))


bare("torchvision", "timm", "timm.data", "timm.loss", "timm.optim", "timm.scheduler", "timm.utils")
torch = importlib.import_module("torch")
auto_augment = importlib.import_module("timm.data.auto_augment")
factory = importlib.import_module("timm.data.transforms_factory")
mixup = importlib.import_module("timm.data.mixup")
RandomErasing = importlib.import_module("timm.data.random_erasing").RandomErasing
losses = importlib.import_module("timm.loss.cross_entropy")
CosineLRScheduler = importlib.import_module("timm.scheduler.cosine_lr").CosineLRScheduler
create_optimizer_v2 = importlib.import_module("timm.optim.optim_factory").create_optimizer_v2
dispatch_clip_grad = importlib.import_module("timm.utils.clip_grad").dispatch_clip_grad
ModelEmaV2 = importlib.import_module("timm.utils.model_ema").ModelEmaV2
ColorJitter = importlib.import_module("torchvision.transforms").ColorJitter


def seed_all(seed: int) -> None:
    """Seed the three sources that timm draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth image with noise, so that neither filters nor rounding hide."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(10, 246, (5, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype(int)
    return Image.fromarray(
        np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype("u1")
    )


def training_transform(side: int) -> list:
    """The transforms that timm makes of the recipe's settings, in order."""
    made = factory.transforms_imagenet_train(
        side, auto_augment=POLICY, interpolation="random", use_prefetcher=True, mean=MEAN, std=STD
    )
    return made.transforms


# RandAugment.


def signs(negative: bool) -> mock._patch:
    """Fix the one draw that decides about the sign."""
    fixed = types.SimpleNamespace(random=lambda: float(negative))
    return mock.patch.object(auto_augment, "random", fixed)


def operation(name: str, magnitude: float, resample: int):
    """An operation that is always done, at a fixed magnitude."""
    settings = {"img_mean": (124, 116, 104), "interpolation": resample}
    return auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=settings)


def operations() -> dict[str, np.ndarray]:
    """Pixels of every operation, and what every magnitude means."""
    image = photo(12, 10)
    flat = Image.fromarray(np.stack([np.full((6, 7), 90), np.eye(6, 7) * 9, np.eye(6, 7) + 200], -1)
                           .astype("u1"))  # fmt: skip
    found = {"ops/image": np.asarray(image), "ops/flat": np.asarray(flat)}
    for name in auto_augment._RAND_INCREASING_TRANSFORMS:
        level = auto_augment.LEVEL_TO_ARG[name]
        signed = name.endswith(("X", "Y", "Rel", "Rotate")) or (
            name.startswith(("Color", "Contrast", "Bright", "Sharp"))
        )
        magnitudes = (3.4, 9.2, 10.0) if level else (9.0,)
        moves = name.endswith(("X", "Y", "Rel", "Rotate"))
        if moves:
            magnitudes = magnitudes[:2]
        cases = list(itertools.product(magnitudes, (0, 1)[: 1 + signed], (0, 1)[: 1 + moves]))
        pixels = []
        for magnitude, negative, bicubic in cases:
            with signs(bool(negative)):
                pixels.append(np.asarray(operation(name, magnitude, FILTERS[bicubic])(image)))
        found[f"ops/{name}/case"] = np.array(cases, np.float32)
        found[f"ops/{name}/pixels"] = np.stack(pixels)
        if not level:
            found[f"ops/{name}/flat"] = np.asarray(operation(name, 9.0, FILTERS[0])(flat))
            continue
        table = []
        for negative in (False, True)[: 1 + signed]:
            with signs(negative):
                table.append([level(step / 4, {})[0] for step in range(41)])
        found[f"ops/{name}/argument"] = np.array(table, np.float64)
    return found


def policy_draws(count: int = 3000) -> dict[str, np.ndarray]:
    """What the policy does to many images: operations done, their arguments and filters."""
    seed_all(1)
    policy = training_transform(32)[2]
    names = auto_augment._RAND_INCREASING_TRANSFORMS
    done: list[tuple[int, float, int]] = []

    def spy(index: int):
        def record(image: Image.Image, *args: float, **settings: object) -> Image.Image:
            argument = args[0] if args else np.nan
            bicubic = auto_augment._interpolation(dict(settings)) == Image.BICUBIC
            done.append((index, argument, bicubic))
            return image

        return record

    for op in policy.ops:
        op.aug_fn = spy(names.index(op.name))
    ops = np.full((count, 2), -1, np.int8)
    arguments = np.full((count, 2), np.nan, np.float32)
    bicubic = np.zeros((count, 2), bool)
    for row in range(count):
        done.clear()
        policy(Image.new("RGB", (2, 2)))
        for place, (index, argument, cubic) in enumerate(done):
            ops[row, place], arguments[row, place], bicubic[row, place] = index, argument, cubic
    return {
        "policy/names": np.array(json.dumps(names)),
        "policy/fill": np.array(policy.ops[0].kwargs["fillcolor"]),
        "policy/ops": ops,
        "policy/arguments": arguments,
        "policy/bicubic": bicubic,
    }


# Crops, colour jitter, all of it, and evaluation.


def crops(count: int = 1000) -> dict[str, np.ndarray]:
    """Boxes (left, top, right, bottom) of random crops."""
    seed_all(2)
    transform, found = training_transform(32)[0], {}
    for size in ((500, 375), (900, 180), (40, 400)):
        image = types.SimpleNamespace(size=size)
        drawn = [
            transform.get_params(image, transform.scale, transform.ratio) for _ in range(count)
        ]
        top, left, height, width = np.array(drawn).T
        boxes = np.stack([left, top, left + width, top + height], axis=1)
        found[f"crop/{size[0]}x{size[1]}"] = boxes.astype(np.uint16)
    return found


def jitters() -> dict[str, np.ndarray]:
    """Pixels of colour jitter in every order, for fixed factors; and factors drawn."""
    image, factors = photo(12, 10, 1), (0.7, 1.3, 0.6)
    orders, pixels = list(itertools.permutations(range(3))), []
    jitter = ColorJitter(0.4, 0.4, 0.4)
    for order in orders:
        drawn = ([*order, 3], *factors, None)
        with mock.patch.object(ColorJitter, "get_params", lambda *_, drawn=drawn: drawn):
            pixels.append(np.asarray(jitter(image)))
    seed_all(3)
    ranges = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    drawn = [ColorJitter.get_params(*ranges)[1:4] for _ in range(500)]
    return {
        "jitter/image": np.asarray(image),
        "jitter/order": np.array(orders, np.int8),
        "jitter/factor": np.array(factors),
        "jitter/pixels": np.stack(pixels),
        "jitter/drawn": np.array(drawn, np.float32),
    }


def features(pixels: np.ndarray) -> list[float]:
    """Six numbers of an augmented image [H, W, 3]: means, spread, and which way it lies."""
    values = pixels.astype(np.float64)
    middle_row, middle = values.shape[0] // 2, values.shape[1] // 2
    sideways = values[:, :middle].mean() - values[:, middle:].mean()
    upward = values[:middle_row].mean() - values[middle_row:].mean()
    return [*values.mean(axis=(0, 1)), values.std(), sideways, upward]


def examples(count: int = 900) -> dict[str, np.ndarray]:
    """What the whole transform of training makes of one photo, many times."""
    seed_all(4)
    image, whole = photo(56, 42, 2), training_transform(32)
    rows = []
    for _ in range(count):
        out = image
        for step in whole:
            out = step(out)
        rows.append(features(np.moveaxis(out, 0, -1)))
    return {"whole/image": np.asarray(image), "whole/features": np.array(rows, np.float16)}


def evaluation() -> dict[str, np.ndarray]:
    """What evaluation sees of images of some shapes, 16 pixels wide."""
    found = {}
    for place, (size, pct) in enumerate(
        [((25, 21), 0.875), ((21, 25), 0.875), ((18, 27), 0.875), ((38, 17), 1.0), ((10, 13), 0.9)]
    ):
        image = photo(*size, seed=10 + place)
        view = factory.transforms_imagenet_eval(16, pct, "bicubic", use_prefetcher=True)
        found[f"eval/{place}/image"] = np.asarray(image)
        found[f"eval/{place}/crop_pct"] = np.array(pct)
        found[f"eval/{place}/pixels"] = np.moveaxis(view(image), 0, -1)
    return found


# Mixup and CutMix.

BOTH = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.0, "num_classes": 2}


def mix_draws(count: int = 2000) -> dict[str, np.ndarray]:
    """How batches are mixed, read off a black image whose partner is white."""
    seed_all(5)
    own, boxes, pastes = [], [], []
    for _ in range(count):
        shares, target = mixed_black(mixup.Mixup(**BOTH))
        own.append(target)
        pastes.append(bool(np.isin(shares, (0, 1)).all()))
        boxes.append(box_of(shares == 1) if pastes[-1] else (0, 0, 0, 0))
    seldom = mixup.Mixup(**BOTH, prob=0.6, switch_prob=0.3)
    kinds = np.zeros(3, int)
    for _ in range(count):
        shares, _ = mixed_black(seldom)
        kinds[0 if not shares.any() else 2 if np.isin(shares, (0, 1)).all() else 1] += 1
    return {
        "mix/own": np.array(own, np.float32),
        "mix/pastes": np.array(pastes),
        "mix/box": np.array(boxes, np.uint8),
        "mix/kinds_of_seldom": kinds,
    }


def mixed_black(mixes: "mixup.Mixup") -> tuple[np.ndarray, float]:
    """The partner's share at each of 48 x 40 pixels, and the own label's."""
    images = torch.stack([torch.zeros(1, 48, 40), torch.ones(1, 48, 40)])
    mixed, target = mixes(images, torch.tensor([0, 1]))
    return mixed[0, 0].numpy(), float(target[0, 0])


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box; zeros where there is none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def cutmix_sizes() -> dict[str, np.ndarray]:
    """Height and width of boxes in the middle of 224 x 160 pixels, for some shares."""
    shares, sizes = np.linspace(0.015, 0.985, 49), []
    with mock.patch.object(mixup.np.random, "randint", lambda low, high, size: (low + high) // 2):
        for share in shares:
            top, bottom, left, right = mixup.rand_bbox((1, 224, 160), share)
            sizes.append((bottom - top, right - left))
    return {"mix/sizes_share": shares, "mix/sizes": np.array(sizes, np.uint8)}


def mixed_batches() -> dict[str, np.ndarray]:
    """A batch mixed in both ways: images, targets and the loss of some logits."""
    rng = np.random.default_rng(6)
    images = rng.integers(0, 256, (6, 3, 6, 5), np.uint8)
    labels = np.array([0, 4, 2, 2, 1, 3])
    logits = rng.normal(0, 2, (6, 5)).astype(np.float32)
    found = {"batch/image": images, "batch/label": labels, "batch/logits": logits}
    settings = BOTH | {"num_classes": 5, "label_smoothing": 0.1}
    for name, drawn in {"mixup": (0.3137, False), "cutmix": (0.6, True)}.items():
        boxes = []
        with (
            mock.patch.object(mixup.Mixup, "_params_per_batch", lambda _, drawn=drawn: drawn),
            mock.patch.object(mixup, "rand_bbox", recorded(mixup.rand_bbox, boxes)),
        ):
            seed_all(7)
            pairs = list(zip(images, labels, strict=True))
            whole, target = mixup.FastCollateMixup(**settings)(pairs)
            seed_all(7)
            exact, _ = mixup.Mixup(**settings)(torch.tensor(images).float(), torch.tensor(labels))
        leaf = torch.tensor(logits, requires_grad=True)
        loss = losses.SoftTargetCrossEntropy()(leaf, target)
        loss.backward()
        found |= {
            f"batch/{name}/share": np.array(drawn[0]),
            f"batch/{name}/box": np.array(boxes[0] if boxes else (0, 0, 0, 0)),
            f"batch/{name}/whole": whole.numpy(),
            f"batch/{name}/exact": exact.numpy(),
            f"batch/{name}/target": target.numpy(),
            f"batch/{name}/loss": loss.detach().numpy(),
            f"batch/{name}/grad": leaf.grad.numpy(),
        }
    leaf = torch.tensor(logits, requires_grad=True)
    loss = losses.LabelSmoothingCrossEntropy(0.1)(leaf, torch.tensor(labels))
    loss.backward()
    return found | {"batch/smoothed/loss": loss.detach().numpy(), "batch/smoothed/grad": leaf.grad}


def recorded(function, results: list):
    """The function, keeping what it returns."""

    def call(*args: object, **settings: object) -> object:
        results.append(function(*args, **settings))
        return results[-1]

    return call


# Random erasing.

ERASES = {
    "large": (224, {}),
    "small": (20, {}),
    "seldom_fits": (40, {"min_area": 0.5, "max_area": 1.0, "min_aspect": 0.2}),
}


def erasing(count: int = 1000) -> dict[str, np.ndarray]:
    """Boxes (top, bottom, left, right; zeros for none) that are erased of black images."""
    seed_all(8)
    found = {}
    for name, (side, settings) in ERASES.items():
        eraser = RandomErasing(1.0, mode="pixel", max_count=1, device="cpu", **settings)
        boxes = [box_of(erased(eraser, side)) for _ in range(count)]
        found[f"erase/{name}"] = np.array(boxes, np.uint8)
    eraser = RandomErasing(0.25, mode="pixel", max_count=1, device="cpu")
    found["erase/often"] = np.array(sum(erased(eraser, 6).any() for _ in range(20000)))
    three = RandomErasing(1.0, mode="rand", max_count=3, device="cpu")
    shares, colours = [], []
    for _ in range(count):
        image = three(torch.zeros(1, 40, 40))[0].numpy()
        shares.append((image != 0).mean())
        colours.append(len(np.unique(image[image != 0])))
    found["erase/three_share"] = np.array(shares, np.float32)
    found["erase/three_colours"] = np.array(colours, np.uint8)
    return found


def erased(eraser: "RandomErasing", side: int) -> np.ndarray:
    """Which pixels of a black image are no longer black."""
    return eraser(torch.zeros(1, side, side))[0].numpy() != 0


# Schedule, optimizer and averages.


def rates() -> dict[str, np.ndarray]:
    """Learning rates of the recipes' schedules, as their script makes and steps them."""
    per_epoch = 1281167 // 1024
    steps = np.unique([*range(0, 310 * per_epoch, 1251), *range(5), 310 * per_epoch - 1])
    found = {"rates/step": steps}
    for warmup in (20, 50):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        scheduler = CosineLRScheduler(
            optimizer,
            t_initial=300 * per_epoch,
            lr_min=5e-6,
            warmup_lr_init=1e-6,
            warmup_t=warmup * per_epoch,
            cycle_decay=0.1,
            t_in_epochs=False,
        )
        values = [optimizer.param_groups[0]["lr"]]
        for step in steps[1:]:
            scheduler.step_update(num_updates=int(step))
            values.append(optimizer.param_groups[0]["lr"])
        found[f"rates/{warmup}"] = np.array(values)
    return found


class Parameters(torch.nn.Module):
    """Parameters of given names and values, with the exception that the NAT models ask for."""

    def __init__(self, values: dict[str, np.ndarray]):
        super().__init__()
        for name, value in values.items():
            module, *path = self, *name.split(".")[:-1]
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_parameter(name.split(".")[-1], torch.nn.Parameter(torch.tensor(value)))

    def no_weight_decay_keywords(self) -> set[str]:
        """What timm does not look at."""
        return {"rpb"}


def decayed() -> dict[str, np.ndarray]:
    """Names of the parameters that are decayed, of one model a family."""
    found = {}
    for family in ("nat", "dinat", "dinats", "isotropic", "vit_rpb"):
        with np.load(HERE / f"{family}.npz") as file:
            values = {
                key.split("/param/")[1]: file[key]
                for key in file.files
                if key.count("/") == 2 and "/param/" in key and file[key].dtype.kind == "f"
            }
        model = Parameters(values)
        groups = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05).param_groups
        kept = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        found[family] = [name for name, p in model.named_parameters() if id(p) in kept]
    return {"decayed": np.array(json.dumps(found))}


def updates(count: int = 12) -> dict[str, np.ndarray]:
    """Parameters and averages after each of some updates, clipped gradients and all."""
    rng = np.random.default_rng(9)
    shapes = {"head.weight": (3, 4), "head.bias": (3,), "attn.rpb": (2, 3, 3), "gamma1": (3,)}
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found = {f"updates/{name}/start": value for name, value in start.items()}
    model = Parameters(start)
    optimizer = create_optimizer_v2(model, "adamw", lr=0.05, weight_decay=0.05)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=10, lr_min=5e-4, warmup_lr_init=1e-4, warmup_t=4, t_in_epochs=False
    )
    average = ModelEmaV2(model, decay=0.9)
    kept = {name: [] for name in itertools.product(shapes, ("grad", "value", "average"))}
    for step in range(count):
        for name, p in model.named_parameters():
            # Norms of about 1 to 12: some are clipped at 5, some are not.
            p.grad = torch.tensor(rng.normal(0, 0.2 + 0.2 * step, p.shape).astype(np.float32))
            kept[name, "grad"].append(p.grad.numpy().copy())
        dispatch_clip_grad(model.parameters(), value=5.0, mode="norm")
        optimizer.step()
        average.update(model)
        scheduler.step_update(num_updates=step + 1)
        for what, state in (("value", model), ("average", average.module)):
            for name, p in state.named_parameters():
                kept[name, what].append(p.detach().numpy().copy())
    return found | {f"updates/{name}/{what}": np.stack(x) for (name, what), x in kept.items()}


def main() -> None:
    """Write the files beside this script."""
    augment = operations() | policy_draws() | crops() | jitters() | examples() | evaluation()
    training = mix_draws() | cutmix_sizes() | mixed_batches() | erasing()
    training |= rates() | decayed() | updates()
    np.savez_compressed(HERE / "timm_augment.npz", **augment)
    np.savez_compressed(HERE / "timm_training.npz", **training)


if __name__ == "__main__":
    main()
