"""`natjax data bench` over tasks; of ImageNet: tests/train/tasks/classification/datasets."""

import pytest

from natjax.cli import main


@pytest.mark.parametrize(
    ("preset", "stages"),
    [
        ("detect_demo", ("read and decode", "change at random")),
        pytest.param(
            "segment_demo", ("read", "decode", "change at random"), marks=pytest.mark.slow
        ),
    ],
)
def test_bench_times_the_input_of_every_task(preset, stages, capsys):
    assert main(["data", "bench", preset, "--seconds", "0.1", "--batch-size", "2"]) == 0
    out = capsys.readouterr().out
    assert "digit_scenes" in out
    for stage in stages:
        assert f"{stage} " in out


def test_errors_of_bench_say_what_would_work(capsys):
    assert main(["data", "bench", "detect_demo", "--data.image-size", "32"]) == 2
    assert "--data.image-size is not a setting of detect_demo" in capsys.readouterr().err
    assert main(["data", "bench", "examples/denoise.py"]) == 2
    assert "configuration has `data`" in capsys.readouterr().err
