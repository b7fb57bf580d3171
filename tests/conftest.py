"""Settings that hold for every test."""

import os

os.environ.setdefault("COURSE_LANG", "en")

import pytest

import course_lib  # noqa: F401  before torch, which reads its log levels while loading

FINDINGS = pytest.StashKey[list[str]]()


def pytest_configure(config):
    config.stash[FINDINGS] = []


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[FINDINGS]:
        terminalreporter.section("measured on the way")
        for line in config.stash[FINDINGS]:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def report(pytestconfig):
    """`report(line)` prints a line at the end of the run: a time, a rate, something to look at."""
    return pytestconfig.stash[FINDINGS].append


import torch  # noqa: E402

torch.set_num_threads(1)  # tensors in tests are tiny, and the machine may have other things to do
