"""Selection of tests: the quick ones by default, all with ``--all``, none skipped in CI.

``pytest`` alone leaves out what is slow, needs a browser or a PostgreSQL server, and uses all
cores. A file, folder or test that is named runs whole, in one process.
"""

from collections import Counter

import pytest
from tests.support.requirements import OF_THE_MACHINE

QUICK = "not slow and not browser and not postgres"
_MARK_OF_FIXTURE = {"chromium": "browser", "postgres_server": "postgres"}


def add_options(parser):
    """Add ``--all`` and ``--no-skips``."""
    group = parser.getgroup("selection of tests")
    group.addoption("--all", action="store_true", help=f"also those that are left out: {QUICK}")
    group.addoption(
        "--no-skips", action="store_true",
        help="fail when a test was skipped for a reason that an installation removes",
    )  # fmt: skip


def choose(config):
    """Restrict ``pytest`` alone to the quick tests, and distribute tests that nobody named.

    Each process of pytest-xdist asks for itself: it parses the same command line.
    """
    option = config.option
    if config.args_source is not config.ArgsSource.TESTPATHS:
        return
    if not option.all and not option.markexpr:
        option.markexpr = QUICK
    # pytest-cov has looked for processes before: with --cov they need an explicit -n.
    alone = hasattr(config, "workerinput") or option.usepdb or getattr(option, "cov_source", None)
    if not alone and getattr(option, "numprocesses", 0) is None:
        option.numprocesses = "auto"


def mark(item):
    """Mark a test by the expensive fixtures that it asks for."""
    for fixture, name in _MARK_OF_FIXTURE.items():
        if fixture in item.fixturenames:
            item.add_marker(name)


class NoSkips:
    """Plugin that fails the session when something was skipped that could have run."""

    def __init__(self):
        self._reasons = Counter()

    def pytest_runtest_logreport(self, report):
        """Count a test that was skipped."""
        self._count(report)

    def pytest_collectreport(self, report):
        """Count a module that was skipped."""
        self._count(report)

    def _count(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            self._reasons[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1

    @property
    def _avoidable(self):
        return [reason for reason in self._reasons if not reason.startswith(OF_THE_MACHINE)]

    def pytest_sessionfinish(self, session):
        """Fail the session."""
        if self._avoidable and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        """List what was skipped, and why."""
        for reason, count in self._reasons.most_common():
            allowed = "forbidden" if reason in self._avoidable else "allowed"
            terminalreporter.write_line(f"{count} skipped ({allowed}): {reason}")
