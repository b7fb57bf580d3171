"""Each lesson in JupyterLab and Chromium: how long *Run All* takes, how fast sliders answer."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lab import Screen, Server, chromium, find_chromium, jupyterlab, percentile
from page import named, table
from playwright.sync_api import Browser

from notebooks import build, lessons, python

HEADING = ("课程在浏览器里", "The lessons in a browser")
BARE = """\
import ipywidgets
slider = ipywidgets.SelectionSlider(options=[(str(i), i) for i in range(41)], index=20)
words = ipywidgets.HTML("20")
slider.observe(lambda change: words.set_trait("value", str(change["new"])), "index")
ipywidgets.VBox([slider, words])"""


def section() -> Iterator[str]:
    path = find_chromium()
    if path is None:
        raise RuntimeError("no Chromium here: `playwright install chromium` fetches one")
    yield named(
        "真实的 JupyterLab 与 Chromium。运行全部：一次，新内核，从命令到页面静止。滑块：每个都用"
        "键盘和鼠标移动，从输入到新图画好，毫秒。最后一行是下限：滑块旁边没有图，只有一个数。",
        "Real JupyterLab and Chromium. Run All: once, in a fresh kernel, from the command until "
        "the page is at rest. Sliders: each is moved by keys and by the mouse; milliseconds from "
        "the input until the new picture is painted. The last row is the floor: a slider beside "
        "no picture, just a number.",
        between="\n\n",
    )
    rows, every = [], []
    with (
        tempfile.TemporaryDirectory() as scratch,
        chromium(path) as browser,
        jupyterlab(Path(scratch)) as server,
    ):
        for lesson in lessons():
            seconds, sliders, moves = _tried(browser, server, str(lesson))
            every += moves
            rows.append([f"{lesson}", f"{seconds:.1f} s", str(sliders), *_latency(moves)])
        build(server.folder / "98_bare.ipynb", python(BARE))
        _, _, floor = _tried(browser, server, "98_bare")
    rows.append([named("合计", "all"), "", "", *_latency(every)])
    rows.append([named("只有一个数", "just a number"), "", "1", *_latency(floor)])
    heads = [
        named("课", "lesson"), named("运行全部", "Run All"), named("滑块", "sliders"),
        named("移动", "moves"), named("中位数", "median"),
        named("第 95 百分位", "95th percentile"), named("最大", "greatest"),
    ]  # fmt: skip
    yield table(heads, rows)


def _tried(browser: Browser, server: Server, name: str) -> tuple[float, int, list[float]]:
    """Seconds of *Run All*, the number of sliders, and the seconds of every move."""
    screen = Screen.open(browser, server, name)
    seconds = screen.run_all()
    handles = screen.handles()
    complaints = [c for handle in handles for c in handle.try_everything()]
    if trouble := complaints + screen.faults():
        raise RuntimeError(f"{name}: {trouble}")
    screen.close()
    return seconds, len(handles), [second for handle in handles for second in handle.seconds]


def _latency(seconds: list[float]) -> list[str]:
    if not seconds:
        return ["0", "—", "—", "—"]
    worst = percentile(95, seconds)
    times = (statistics.median(seconds), worst, max(seconds))
    return [str(len(seconds)), *(f"{1000 * time:.0f}" for time in times)]
