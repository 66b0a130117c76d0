"""Every implementation runs the same suite."""

import pytest

from natjax.kernels import dispatch


@pytest.fixture(params=dispatch.available())
def implementation(request):
    return request.param
