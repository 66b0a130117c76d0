import sys
import time

import pytest

from natjax.train.errors import UserError
from natjax.train.reporting.metrics import MetricsWriter
from natjax.train.reporting.wandb import Wandb, require_wandb


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """Nobody is logged in, and no setting of this machine's user counts."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def write(folder, steps) -> None:
    writer = MetricsWriter(
        folder / "m.jsonl", sinks=[Wandb("project", folder, {"seed": 3}, ["images"])]
    )
    for step in steps:
        writer.write(kind="train", step=step, loss=step / 4, grad_norm=None)
        writer.write(kind="eval", step=step, weights="ema", images=360, top1=0.25)
    writer.close()


def contents(path, texts) -> bytes:
    """A file that another process writes, once it has all texts, or after half a minute."""
    for _ in range(300):
        data = path.read_bytes()
        if all(text in data for text in texts):
            break
        time.sleep(0.1)
    return data


@pytest.mark.usefixtures("nobody")
def test_a_run_is_kept_offline(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(tmp_path, [10, 20])
    said = capsys.readouterr()
    assert said.out == f"Weights & Biases: in {tmp_path}/wandb\n"
    assert said.err == ""
    identity = (tmp_path / "wandb_id").read_text().strip()
    (path,) = tmp_path.glob(f"wandb/offline-run-*/run-{identity}.wandb")
    texts = (b"train/loss", b"2.5", b"eval_ema/top1", b"0.25", b"seed")
    data = contents(path, texts)
    assert [text for text in texts if text not in data] == []
    assert b"grad_norm" not in data
    write(tmp_path, [30])  # another process goes on with it
    assert len(list(tmp_path.glob(f"wandb/offline-run-*/run-{identity}.wandb"))) == 2


class FakeRun:
    """A run of W&B that goes on after a step."""

    offline, url = False, "https://wandb.example/run"

    def __init__(self, step):
        self.step, self.lines = step, []

    def log(self, values, step):
        self.lines.append((step, values))
        self.step = step

    def finish(self):
        self.lines.append("finished")


def test_going_on_sends_no_line_twice(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    run, options = FakeRun(step=20), {}
    monkeypatch.setattr(wandb, "init", lambda **given: (options.update(given), run)[1])
    write(tmp_path, [10, 20, 30])
    steps = [line[0] for line in run.lines[:-1]]
    assert steps == [20, 20, 30, 30]
    assert run.lines[1] == (20, {"eval_ema/top1": 0.25})
    assert run.lines[-1] == "finished"
    assert (options["project"], options["resume"], options["config"]) == (
        "project",
        "allow",
        {"seed": 3},
    )
    assert options["name"] == tmp_path.name


def test_who_is_not_logged_in_learns_what_works(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"--wandb project: .*wandb login.*WANDB_MODE=offline"):
        Wandb("project", tmp_path, {})


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'natjax\[wandb\]'"):
        require_wandb()
