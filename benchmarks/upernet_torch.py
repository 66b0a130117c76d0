"""UPerNet on NAT out of PyTorch's own modules: what `benchmarks/segment.py` measures natjax beside.

Run by it, in a Python that has PyTorch; it answers on standard output, a line of JSON for each line
that it is told. Names of modules are those of the published files, so that both sides have the same
weights. Neighborhood attention gathers the keys and values of each window: the plain formulation,
since NATTEN has kernels for GPUs alone.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from typing import Any

from benchmarks.measured import measured

torch: Any = importlib.import_module("torch")  # of another Python than the type checker's
nn: Any = importlib.import_module("torch.nn")
F: Any = importlib.import_module("torch.nn.functional")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def drop_path(x: Any, rate: float, training: bool) -> Any:
    """Leave out the branch of some images."""
    if not training or not rate:
        return x
    keep = torch.rand(len(x), *(1,) * (x.ndim - 1)) >= rate
    return x * keep / (1 - rate)


class LayerNormOfMaps(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W], with channels last in the result."""

    def forward(self, x: Any) -> Any:
        """Return [B, H, W, C]."""
        return super().forward(x.permute(0, 2, 3, 1))


class NeighborhoodAttention(nn.Module):
    """Attention of each token to the window around it; maps are [B, H, W, C]."""

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.rpb = nn.Parameter(torch.zeros(heads, 2 * window - 1, 2 * window - 1))

    def forward(self, x: Any) -> Any:
        """Return maps of the same shape."""
        height, width = x.shape[1:3]
        below, right = (max(0, self.window - n) for n in (height, width))
        x = F.pad(x, (0, 0, 0, right, 0, below))  # smaller maps are filled up, as published
        qkv = self.qkv(x).reshape(*x.shape[:3], 3, self.heads, -1).permute(3, 0, 4, 1, 2, 5)
        query, key, value = qkv
        rows, columns = (self.neighbors(n) for n in x.shape[1:3])
        place = (slice(None), slice(None), rows[:, None, :, None], columns[None, :, None, :])
        logits = torch.einsum("bnhwd,bnhwijd->bnhwij", query, key[place])
        logits = logits * query.shape[-1] ** -0.5 + self.bias(rows, columns)
        weights = logits.flatten(-2).softmax(-1).unflatten(-1, (self.window,) * 2)
        out = torch.einsum("bnhwij,bnhwijd->bhwnd", weights, value[place]).flatten(3)
        return self.proj(out[:, :height, :width])

    def neighbors(self, length: int) -> Any:
        """Keys of each query along an axis, [length, window]."""
        first = (torch.arange(length) - self.window // 2).clamp(0, length - self.window)
        return first[:, None] + torch.arange(self.window)

    def bias(self, rows: Any, columns: Any) -> Any:
        """Position bias of each query and key, [heads, H, W, window, window]."""
        down, along = (
            keys - torch.arange(len(keys))[:, None] + self.window - 1 for keys in (rows, columns)
        )
        return self.rpb[:, down[:, None, :, None], along[None, :, None, :]]


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual stream."""

    def __init__(self, channels: int, heads: int, window: int, mlp_ratio: float, rate: float):
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = NeighborhoodAttention(channels, heads, window)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(channels, hidden), "fc2": nn.Linear(hidden, channels)}
        )
        self.rate = rate

    def forward(self, x: Any) -> Any:
        """Return maps of the same shape."""
        x = x + drop_path(self.attn(self.norm1(x)), self.rate, self.training)
        hidden = F.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + drop_path(self.mlp["fc2"](hidden), self.rate, self.training)


class NAT(nn.Module):
    """Maps of all levels, each under a norm of its own; shape as in `natjax.NATConfig`."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        dim, depths = shape["dim"], shape["depths"]
        first = nn.Conv2d(3, dim // 2, 3, 2, 1), nn.Conv2d(dim // 2, dim, 3, 2, 1)
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Sequential(*first), "norm": LayerNormOfMaps(dim)}
        )
        rates = iter(torch.linspace(0, shape["drop_path"], sum(depths)).tolist())
        self.levels = nn.ModuleList()
        for level, (depth, heads) in enumerate(zip(depths, shape["num_heads"], strict=True)):
            channels = dim * 2**level
            options = (channels, heads, shape["kernel_size"], shape["mlp_ratio"])
            blocks = nn.ModuleList(Block(*options, next(rates)) for _ in range(depth))
            parts = {"blocks": blocks}
            if level + 1 < len(depths):
                reduction = nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False)
                norm = LayerNormOfMaps(2 * channels)
                parts["downsample"] = nn.ModuleDict({"reduction": reduction, "norm": norm})
            self.levels.append(nn.ModuleDict(parts))
            self.add_module(f"norm{level}", nn.LayerNorm(channels))

    def forward(self, images: Any) -> list[Any]:
        """Return the maps, [B, C, H, W]."""
        x = self.patch_embed["norm"](self.patch_embed["proj"](images))
        maps = []
        for level, parts in enumerate(self.levels):
            for block in parts["blocks"]:
                x = block(x)
            maps.append(getattr(self, f"norm{level}")(x).permute(0, 3, 1, 2))
            if "downsample" in parts:
                halved = parts["downsample"]["reduction"](x.permute(0, 3, 1, 2))
                x = parts["downsample"]["norm"](halved)
        return maps


class ConvModule(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, side: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Any) -> Any:
        """Return [B, C, H, W]."""
        return F.relu(self.bn(self.conv(x)))


def resize(x: Any, size: Any) -> Any:
    """Interpolate between the centres of pixels."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class UPerHead(nn.Module):
    """Pyramid pooling, feature pyramid, classifier."""

    def __init__(self, inputs: list[int], channels: int, classes: int, scales: list[int]):
        super().__init__()
        *others, last = inputs
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(cells), ConvModule(last, channels, 1))
            for cells in scales
        )
        self.bottleneck = ConvModule(last + channels * len(scales), channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(size, channels, 1) for size in others)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in others)
        self.fpn_bottleneck = ConvModule(channels * len(inputs), channels, 3)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, maps: list[Any]) -> Any:
        """Return logits at the size of the first map."""
        pooled = [resize(branch(maps[-1]), maps[-1].shape[2:]) for branch in self.psp_modules]
        coarser = top = self.bottleneck(torch.cat([maps[-1], *pooled], 1))
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=False)]
        for i in reversed(range(len(levels))):
            coarser = levels[i] = levels[i] + resize(coarser, levels[i].shape[2:])
        levels = [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=True)]
        levels = [resize(x, maps[0].shape[2:]) for x in [*levels, top]]
        out = self.fpn_bottleneck(torch.cat(levels, 1))
        return self.conv_seg(F.dropout2d(out, 0.1, self.training))


class FCNHead(nn.Module):
    """A convolution and a classifier."""

    def __init__(self, inputs: int, channels: int, classes: int):
        super().__init__()
        self.convs = nn.ModuleList([ConvModule(inputs, channels, 3)])
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Any) -> Any:
        """Return logits at the size of the map."""
        return self.conv_seg(F.dropout2d(self.convs[0](x), 0.1, self.training))


class UPerNet(nn.Module):
    """Backbone and both heads."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        levels, classes = shape["levels"], shape["num_classes"]
        self.backbone = NAT(shape["backbone"])
        self.decode_head = UPerHead(levels, shape["channels"], classes, shape["pool_scales"])
        self.auxiliary_head = FCNHead(
            levels[shape["auxiliary_level"]], shape["auxiliary_channels"], classes
        )
        self.level, self.weight = shape["auxiliary_level"], shape["auxiliary_weight"]

    def heads(self, maps: list[Any]) -> tuple[Any, Any]:
        """Logits of both heads."""
        return self.decode_head(maps), self.auxiliary_head(maps[self.level])

    def loss(self, logits: tuple[Any, Any], labels: Any) -> Any:
        """Cross-entropy of both, over all pixels."""
        terms = (
            F.cross_entropy(resize(x, labels.shape[1:]), labels, ignore_index=255, reduction="sum")
            for x in logits
        )
        main, auxiliary = terms
        return (main + self.weight * auxiliary) / labels.numel()


class Bench:
    """The parts that are measured, by the names that `benchmarks/segment.py` has for them."""

    def __init__(self, told: dict[str, Any]):
        torch.manual_seed(0)
        self.model = UPerNet(told["shape"])
        self.model.load_state_dict(torch.load(told["weights"], weights_only=True))
        self.pixels, self.labels = (
            torch.from_numpy(importlib.import_module("numpy").load(told[name]))
            for name in ("images", "labels")
        )
        self.labels = self.labels.long()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=6e-5, weight_decay=0.01)
        self.result = None

    @property
    def images(self) -> Any:
        """The images, normalised."""
        mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (MEAN, STD))
        return (self.pixels.permute(0, 3, 1, 2) / 255 - mean) / std

    @functools.cached_property
    def maps(self) -> list[Any]:
        """Maps of the backbone, for what comes behind it."""
        with torch.no_grad():
            return self.model.eval().backbone(self.images)

    @functools.cached_property
    def logits(self) -> tuple[Any, Any]:
        """Logits of both heads, for what comes behind them."""
        with torch.no_grad():
            return self.model.eval().heads(self.maps)

    def infer(self, part: str) -> Any:
        """Inference, or a part of it."""
        self.model.eval()
        size = self.pixels.shape[1:3]
        with torch.no_grad():
            if part == "backbone":
                return self.model.backbone(self.images)
            if part == "head":
                return self.model.decode_head(self.maps)
            if part == "resize":
                return resize(self.logits[0], size).argmax(1)
            logits = self.model.decode_head(self.model.backbone(self.images))
            self.result = resize(logits, size)
            return self.result.argmax(1)

    def step(self, part: str) -> Any:
        """A step of training, or forward and backward of a part of it."""
        self.model.train()
        if part == "backbone":
            return sum(x.square().sum() for x in self.model.backbone(self.images)).backward()
        if part == "head":
            maps = [x.detach().requires_grad_() for x in self.maps]
            return sum(x.square().sum() for x in self.model.heads(maps)).backward()
        if part == "resize":
            logits = tuple(x.detach().requires_grad_() for x in self.logits)
            return self.model.loss(logits, self.labels).backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.loss(self.model.heads(self.model.backbone(self.images)), self.labels).backward()
        return self.optimizer.step()


def main() -> None:
    """Answer line by line; the first line says what to make."""
    bench = Bench(json.loads(sys.stdin.readline()))
    print(json.dumps({"version": torch.__version__}), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        found = measured(lambda told=told: getattr(bench, told["mode"])(told["part"]))
        if told.get("save"):
            importlib.import_module("numpy").save(told["save"], bench.result.numpy())
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
