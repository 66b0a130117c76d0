import jax.numpy as jnp
import pytest

from natjax.train.config.settings import ProfileConfig
from natjax.train.reporting.profiling import StepTrace


def run(folder, writes=True, **settings) -> None:
    with StepTrace(ProfileConfig(**settings), folder, writes) as trace:
        for step in range(101, 107):
            trace.before_step()
            trace.after_step(step, jnp.float32(step) + 1)


def test_a_trace_of_the_steps_that_were_asked_for(tmp_path, capsys):
    run(tmp_path / "p", steps=2, start=3)
    assert list((tmp_path / "p").rglob("*.xplane.pb"))
    out = capsys.readouterr().out
    assert f"traced steps 104 to 105 into {tmp_path / 'p'}; to see: pip install xprof" in out


def test_a_run_that_ends_before_leaves_what_there_is(tmp_path, capsys):
    run(tmp_path / "p", steps=100, start=5)
    assert list((tmp_path / "p").rglob("*.xplane.pb"))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"steps": 2, "writes": False}])
def test_nobody_asked(tmp_path, settings):
    run(tmp_path / "p", start=0, **settings)
    assert not (tmp_path / "p").exists()
