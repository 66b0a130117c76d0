"""A pytest plugin: run every n-th test, so that n processes share a suite (``--shard 2/8``).

It writes why a test failed as soon as it did: a share that runs out of time never reaches pytest's
own summary. pytest-xdist does it better; the machines that have GPUs need not have it.
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


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Tell of failures at once."""
    config.pluginmanager.register(_Failures(config), "natjax-failures")


class _Failures:
    """Writes the reason of every failure, when it happens."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\nFAILED {report.nodeid} ({report.when})")
            terminal.write_line(report.longreprtext)
