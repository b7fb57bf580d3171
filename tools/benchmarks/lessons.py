"""Each lesson in JupyterLab and Chromium: how long *Run All* takes, how fast sliders answer."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from page import named, table
from playwright.sync_api import Browser

from support.lab import Screen, Server, chromium, find_chromium, jupyterlab, percentile
from support.notebooks import build, lessons, python

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
        "键盘和鼠标移动，从输入到新图画好，毫秒；先是内核可能还没画过的位置，再把同样的位置走一遍，"
        "这时图都在网页里。最后一行是内核一来一回的下限：滑块旁边没有图，只有一个数。",
        "Real JupyterLab and Chromium. Run All: once, in a fresh kernel, from the command until "
        "the page is at rest. Sliders: each is moved by keys and by the mouse; milliseconds from "
        "the input until the new picture is painted; first at positions that the kernel may not "
        "have drawn yet, then at the same positions again, whose pictures are now in the page. The "
        "last row is the floor of a round trip to the kernel: a slider beside no picture, just a "
        "number.",
        between="\n\n",
    )
    rows: list[list[str]] = []
    every: list[float] = []
    again: list[float] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        chromium(path) as browser,
        jupyterlab(Path(scratch)) as server,
    ):
        for lesson in lessons():
            seconds, sliders, first, second = _tried(browser, server, str(lesson))
            every += first
            again += second
            ran = f"{seconds:.1f} s"
            rows.append([f"{lesson}", ran, str(sliders), *_latency(first), *_latency(second)])
        build(server.folder / "98_bare.ipynb", python(BARE))
        _, _, floor, repeated = _tried(browser, server, "98_bare")
    rows.append([named("合计", "all"), "", "", *_latency(every), *_latency(again)])
    bare = named("只有一个数", "just a number")
    rows.append([bare, "", "1", *_latency(floor), *_latency(repeated)])
    heads = [
        named("课", "lesson"), named("运行全部", "Run All"), named("滑块", "sliders"),
        named("移动", "moves"), named("中位数", "median"),
        named("第 95 百分位", "95th percentile"), named("最大", "greatest"),
        named("再移动", "moves again"), named("中位数", "median"),
        named("第 95 百分位", "95th percentile"), named("最大", "greatest"),
    ]  # fmt: skip
    yield table(heads, rows)


def _tried(
    browser: Browser, server: Server, name: str
) -> tuple[float, int, list[float], list[float]]:
    """Seconds of *Run All*, the number of sliders, the seconds of every move, and once more.

    Each slider stays where its tries ended. So the round after the first begins somewhere else, and
    the third goes where the second has been.
    """
    screen = Screen.open(browser, server, name)
    seconds = screen.run_all()
    handles = screen.handles()
    complaints, rounds = [], []
    for count in range(3):
        for handle in handles:
            handle.seconds.clear()
            if count == 1:
                handle.at.clear()
            complaints += handle.try_everything()
        rounds.append([second for handle in handles for second in handle.seconds])
    if trouble := complaints + screen.faults():
        raise RuntimeError(f"{name}: {trouble}")
    screen.close()
    return seconds, len(handles), rounds[0], rounds[2]


def _latency(seconds: list[float]) -> list[str]:
    if not seconds:
        return ["0", "—", "—", "—"]
    worst = percentile(95, seconds)
    times = (statistics.median(seconds), worst, max(seconds))
    return [str(len(seconds)), *(f"{1000 * time:.0f}" for time in times)]
