"""One JupyterLab and one Chromium for all lessons."""

import pytest

from support.lab import chromium, find_chromium, jupyterlab
from support.notebooks import continuous_integration


@pytest.fixture(scope="module")
def browser():
    path = find_chromium()
    if path is None:
        sentence = (
            "no Chromium: install your system's `chromium`, or run `playwright install chromium`"
        )
        (pytest.fail if continuous_integration() else pytest.skip)(sentence)
    with chromium(path) as found:
        yield found


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    """Depends on the browser so that nothing is started where there is none."""
    with jupyterlab(tmp_path_factory.mktemp("lab")) as running:
        yield running
