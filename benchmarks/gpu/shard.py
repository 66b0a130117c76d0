"""A pytest plugin: run every n-th test, so that n processes share a suite (``--shard 2/8``).

pytest-xdist does it better; the machines that have GPUs need not have it.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--shard", default="0/1", help="which share of the tests to run, from 0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the share."""
    share, of = map(int, config.getoption("--shard").split("/"))
    config.hook.pytest_deselected(items=[x for i, x in enumerate(items) if i % of != share])
    items[:] = items[share::of]
