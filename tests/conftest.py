"""Settings that hold for every test."""

import os

os.environ.setdefault("COURSE_LANG", "en")

import pytest

import course_lib  # noqa: F401  before torch, which reads its log levels while loading

FINDINGS = pytest.StashKey[list[str]]()


def pytest_configure(config):
    config.stash[FINDINGS] = []


def pytest_collection_modifyitems(items):
    """Slow tests first, so that none of them is left over at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_make_scheduler(config, log):
    """Keep in one process what shares something costly: a file; of the kernels' tests, a lesson.

    xdist's own marks for that, `--dist loadgroup`, have no effect from pytest 9.2 on.
    """
    from xdist.scheduler import LoadScopeScheduling

    class BySharing(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            return file + (test.partition("[")[2] if "in_kernels" in file else "")

    return BySharing(config, log)


def pytest_sessionfinish(session):
    """Hand what was measured in a worker process to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["findings"] = session.config.stash[FINDINGS]


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_testnodedown(node):
    node.config.stash[FINDINGS] += getattr(node, "workeroutput", {}).get("findings", [])


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[FINDINGS]:
        terminalreporter.section("measured on the way")
        for line in config.stash[FINDINGS]:
            terminalreporter.line(line)


@pytest.fixture(autouse=True)
def nothing_of_a_trainer_is_left():
    """Trainers that shard a model join a process group, and stay; what they tell other libraries
    through the environment (`LOCAL_RANK`) would have the next test believe that it has peers."""
    before = dict(os.environ)
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in set(os.environ) - set(before) - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def report(pytestconfig):
    """`report(line)` prints a line at the end of the run: a time, a rate, something to look at."""
    return pytestconfig.stash[FINDINGS].append


import torch  # noqa: E402

from course_lib.notebook import answers  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_answered(monkeypatch):
    """What one test has typed into a lesson, the next does not find there."""
    monkeypatch.setattr(answers, "_here", {})


torch.set_num_threads(1)  # tensors in tests are tiny, and the machine may have other things to do
