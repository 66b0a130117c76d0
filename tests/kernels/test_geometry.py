"""What neighborhoods can be beyond NATTEN's: circles, masks, parts, queries on a finer grid."""

import geometry
import pytest
from calls import assert_close, value_and_gradients
from geometry import CASES


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_fused_agrees_with_the_reference(case, x64):
    arrays = case.arrays()
    expected = value_and_gradients(case.fused("reference"), arrays)
    assert_close(value_and_gradients(case.fused("xla"), arrays), expected, "float64")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_unfused_agrees_with_the_reference(case, x64):
    arrays = {k: v for k, v in case.arrays().items() if k in ("query", "key", "value", "rpb")}
    expected = value_and_gradients(case.unfused("reference"), arrays)
    assert_close(value_and_gradients(case.unfused("xla"), arrays), expected, "float64")
