import struct
import sys

import pytest

from natjax.train.errors import UserError
from natjax.train.reporting.metrics import MetricsWriter, drop_after
from natjax.train.reporting.tensorboard import TensorBoard, require_tensorboard


def scalars(folder) -> list[tuple[str, int, float]]:
    """Name, step and value of every scalar that TensorBoard finds in a folder."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.rglob("*tfevents*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[16 + size :]
    return found


def write(folder, steps) -> None:
    board = TensorBoard(folder / "tb", folder / "m.jsonl", leave_out=["images"])
    writer = MetricsWriter(folder / "m.jsonl", sinks=[board])
    for step in steps:
        loss = None if step == 20 else step / 4
        writer.write(kind="train", step=step, loss=loss, learning_rate=0.5)
        writer.write(kind="eval", step=step, weights="ema", images=360, top1=0.25)
    writer.close()


def test_resuming_leaves_neither_doubled_nor_dangling_steps(tmp_path):
    write(tmp_path, [10, 20, 30, 40])
    drop_after(tmp_path / "m.jsonl", 20)  # from the checkpoint of step 20 on
    write(tmp_path, [30])
    names = ("train/loss", "train/learning_rate", "eval_ema/top1")
    found = scalars(tmp_path / "tb")
    assert {(name, step) for name, step, _ in found} == {
        (name, step) for name in names for step in (10, 20, 30)
    } - {("train/loss", 20)}
    assert len(found) == 8
    assert ("train/loss", 30, 7.5) in found


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install 'natjax\[tensorboard\]'"):
        require_tensorboard()
