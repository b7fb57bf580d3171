"""A real JupyterLab on a copy of the notebooks, and a real Chromium that uses it like a learner."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, ElementHandle, Page, sync_playwright

import course
from support.notebooks import FOLDER, RAISES, ROOT

# All cells are on the page, not only those in view.
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none"}}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WINDOW = {"width": 1280, "height": 720}
SCREENSHOTS = Path(__file__).parent / "screenshots"
SCREENSHOT_HEIGHT = 2000


# The server


@dataclass(frozen=True)
class Server:
    """A running JupyterLab. `folder`: where its notebooks are; `settings`: what its user set;
    `path`: leads to one of the notebooks."""

    address: str
    token: str
    folder: Path
    settings: Path
    path: str = "lab/tree"

    def url(self, notebook: str) -> str:
        return f"{self.address}{self.path}/notebooks/{notebook}.ipynb?token={self.token}&reset"

    def trust(self, notebook: Path) -> None:
        """Sign a notebook that was changed outside of JupyterLab, as its user."""
        command = [sys.executable, "-m", "jupyter", "trust", str(notebook)]
        subprocess.run(command, env=_variables(self.settings.parent), check=True)

    def set(self, name: str, values: dict[str, object]) -> None:
        """Change one of JupyterLab's settings, as its user."""
        file = self.settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")


@contextmanager
def jupyterlab(
    scratch: Path, remembered: str | None = None, notebook7: bool = False, alone: bool = False
) -> Iterator[Server]:
    """Start JupyterLab as `course.py` does, for a user in China who has no settings at all.

    `remembered`: the language that the user has chosen in a lesson before. With `notebook7`,
    Jupyter Notebook in its place. `alone`: as somebody who does not use `course.py`, without its
    defaults. In a folder that has been used, everything is as the last server left it.
    """
    root, runtime, defaults = scratch / "course", scratch / "runtime", scratch / "defaults"
    if not root.exists():
        shutil.copytree(FOLDER, root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    env = _variables(scratch)
    if remembered:
        choose = f"from course_lib.language import choose; choose({remembered!r})"
        subprocess.run([sys.executable, "-c", choose], env=env, check=True)
    if not alone:
        course.set_up_jupyterlab(defaults, course.learner_language(sys.executable, env, ROOT))
    command = course.lab_command(
        sys.executable, root, root / "notebooks" / "00_start_here.ipynb", browser=False,
        options=["--ServerApp.port=0", "--LabApp.expose_app_in_browser=True",
                 f"--LabApp.app_settings_dir={defaults}"],
    )  # fmt: skip
    if alone:
        command = [word for word in command if "extra_labextensions" not in word]
    if notebook7:
        command = [word.replace("LabApp", "JupyterNotebookApp") for word in command]
        command[command.index("jupyterlab")] = "notebook"
    with open(scratch / "server.log", "wb") as log:
        process = subprocess.Popen(command, cwd=root, env=env, stdout=log, stderr=log)
        try:
            address, token = _once_started(process, runtime, Path(log.name))
            path = "notebooks" if notebook7 else "lab/tree"
            server = Server(address, token, root / "notebooks", scratch / "settings", path)
            for name, values in SETTINGS.items():
                server.set(name, values)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _variables(scratch: Path) -> dict[str, str]:
    env = course.environment(ROOT) | {
        "PYTHONPATH": str(ROOT),
        "HOME": str(scratch),
        "XDG_CONFIG_HOME": str(scratch / "config"),
        "JUPYTER_CONFIG_DIR": str(scratch / "jupyter"),
        "JUPYTER_DATA_DIR": str(scratch / "data"),
        "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(scratch / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(scratch / "workspaces"),
        "IPYTHONDIR": str(scratch / "ipython"),
        "PYTHONWARNINGS": "error:Glyph",
        "LC_ALL": "zh_CN.UTF-8",
    }
    env.pop("COURSE_LANG", None)  # the learner's choice is tried here
    return env


def _once_started(process: subprocess.Popen, runtime: Path, log: Path) -> tuple[str, str]:
    """Wait for the file in which the server says where it listens; its address and token."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        for file in runtime.glob("jpserver-*.json"):
            try:
                info = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:  # half written
                continue
            return info["url"], info["token"]
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-3000:]}")


# The browser


def find_chromium() -> str | None:
    """The system's Chromium or Chrome, or Playwright's own; None where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found:
        return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


@contextmanager
def chromium(path: str) -> Iterator[Browser]:
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=["--disable-dev-shm-usage", *(["--no-sandbox"] if root else [])],
        )
        try:
            yield browser
        finally:
            browser.close()


# A lesson on the screen

KERNEL = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"

LISTEN = """
() => {
  const panel = jupyterapp.shell.currentWidget;
  const heard = window.heard = {problems: [], input: 0, changes: []};
  panel.sessionContext.session.kernel.iopubMessage.connect((_, message) => {
    const {header, content} = message;
    if (header.msg_type === 'error') heard.problems.push(`${content.ename}: ${content.evalue}`);
    // JupyterLab asks for widgets as soon as the kernel is there; the kernel, which has not yet
    // loaded ipywidgets, says on its own stderr that it knows none. No cell shows it.
    const early = /^No such comm/.test(content.text ?? '');
    if (header.msg_type === 'stream' && content.name === 'stderr' && !early)
      heard.problems.push(`stderr: ${content.text}`);
  });
  for (const kind of ['keydown', 'pointerdown', 'pointermove'])
    document.addEventListener(kind, event => {
      if (kind !== 'pointermove' || event.buttons) heard.input = event.timeStamp;
    }, {capture: true, passive: true});
  // A picture is new when something beside the sliders has changed and has been painted.
  new MutationObserver(async mutations => {
    const areas = new Set(mutations
      .filter(({target}) => !(target.closest ?? target.parentElement?.closest)
        ?.call(target.closest ? target : target.parentElement, '.widget-slider, .course-controls'))
      .map(({target}) => (target.closest ? target : target.parentElement)
        ?.closest('.jp-OutputArea-output'))
      .filter(area => area));
    for (const area of areas) {
      await Promise.all([...area.querySelectorAll('img')].map(img => img.decode().catch(() => 0)));
      requestAnimationFrame(now => heard.changes.push({area, at: performance.now(),
        after: performance.now() - heard.input}));
    }
  }).observe(panel.content.node, {subtree: true, childList: true, characterData: true,
    attributes: true, attributeFilter: ['src']});
}
"""

CELL_PROBLEMS = """
meant => jupyterapp.shell.currentWidget.content.widgets.flatMap(cell => {
  const model = cell.model, source = model.sharedModel.source.split('\\n')[0];
  if (model.type !== 'code' || (model.getMetadata('tags') ?? []).includes(meant)) return [];
  const found = [];
  for (let i = 0; i < model.outputs.length; i++) {
    const output = model.outputs.get(i).toJSON();
    if (output.output_type === 'error') found.push(`${source}: ${output.ename}: ${output.evalue}`);
    if (output.name === 'stderr') found.push(`${source}: stderr: ${output.text}`);
  }
  if (model.sharedModel.source.trim() && !model.executionCount) found.push(`${source}: never ran`);
  return found;
})
"""

# Ratios by the formula of WCAG 2.2: (lighter + 0.05) / (darker + 0.05).
CONTRAST = """
() => {
  const parts = colour => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r, g, b].map((c, i) => c * a + [R, G, B][i] * (1 - a));
  const luminance = colour => colour.map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    const own = parts(getComputedStyle(element).backgroundColor);
    if (own[3] === 1 || !element.parentElement) return own.slice(0, 3);
    return over(own, behind(element.parentElement));
  };
  const found = new Map();
  for (const output of document.querySelectorAll('.jp-OutputArea-output')) {
    const walker = document.createTreeWalker(output, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement, words = walker.currentNode.data.trim();
      const not_ours = element.closest('style, script, [data-mime-type$="jupyter.error"],' +
        '[data-mime-type$="jupyter.stderr"]');  // JupyterLab colours tracebacks
      if (!words || !element.checkVisibility() || not_ours) continue;
      const style = getComputedStyle(element), back = behind(element);
      const [a, b] = [luminance(over(parts(style.color), back)), luminance(back)];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const pair = `${style.color} on rgb(${back.map(Math.round)}): ${ratio.toFixed(2)}`;
      found.set(pair, [ratio, `${pair}: ${words.slice(0, 40)}`]);
    }
  }
  return [...found.values()];
}
"""

# What does not fit on the page: outputs wider than their place, explorers higher than the notebook.
MISFITS = """
() => {
  const found = [], page = document.querySelector('.jp-NotebookPanel-notebook').clientHeight;
  for (const output of document.querySelectorAll('.jp-OutputArea-output')) {
    for (const part of [output, ...output.querySelectorAll('*')]) {
      const more = part.scrollWidth - part.clientWidth;
      const scrolls = /auto|scroll|hidden/.test(getComputedStyle(part).overflowX);
      if (part.clientWidth && more > 1 && scrolls)
        found.push(`${part.className || part.tagName} ${more} px too wide: ` +
                   part.innerText.slice(0, 60));
    }
    for (const explorer of output.querySelectorAll('.course-explorer'))
      if (explorer.offsetHeight > page)
        found.push(`${explorer.offsetHeight} px high, the notebook ${page}: ` +
                   explorer.innerText.slice(0, 60));
  }
  return found;
}
"""

LABELS = ":is(.widget-slider .widget-label, .course-label)"

# Where a slider's handle is, and where it can be; pixels. A browser does not say where it draws
# that of its own slider, but its width is about the height of the text.
PLACES = """
handle => {
  const track = handle.closest('.noUi-target') ?? handle, box = track.getBoundingClientRect();
  const own = handle.getBoundingClientRect();
  if (track !== handle) return [own.left + own.width / 2, [box.left, box.right]];
  const [left, right] = [box.left + 8, box.right - 8];
  return [left + (right - left) * handle.value / (handle.max || 1), [left, right]];
}
"""

PROSE = """
language => [...document.querySelectorAll('.jp-MarkdownCell')]
  .filter(cell => cell.querySelector(`span[lang=${language}]:empty`))
  .map(cell => cell.getClientRects().length > 0)
"""


@dataclass
class Screen:
    """A lesson open in the browser."""

    page: Page
    name: str
    problems: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, browser: Browser, server: Server, name: str) -> Screen:
        """Open a notebook and wait for its kernel."""
        screen = cls(browser.new_page(viewport=WINDOW), name)
        page = screen.page
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: screen.problems.append(f"page error: {error}"))
        page.on("console", screen._hear)
        page.goto(server.url(name))
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        screen.wait_until_idle()
        page.evaluate(LISTEN)
        return screen

    def _hear(self, message) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def close(self) -> None:
        self.page.evaluate("jupyterapp.serviceManager.sessions.shutdownAll()")
        self.page.close()

    def wait_until_idle(self) -> None:
        self.page.wait_for_function(f"{KERNEL}?.status === 'idle'")

    def run_all(self) -> float:
        """Run all cells and return the seconds it took."""
        started = time.perf_counter()
        self.page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        self.wait_until_idle()
        self.settle()
        return time.perf_counter() - started

    def run_first_code_cell(self) -> None:
        """Run the lesson as far as its set-up cell."""
        self.run_code_cell(0)
        self.page.wait_for_selector(".widget-toggle-buttons button")
        self.settle()

    def run_code_cell(self, number: int, source: str | None = None) -> None:
        """Run one code cell, the first is 0, with another source if one is given."""
        self.page.evaluate(
            """([number, source]) => {
              const notebook = jupyterapp.shell.currentWidget.content;
              const code = notebook.widgets.filter(c => c.model.type === 'code')[number];
              if (source !== null) code.model.sharedModel.setSource(source);
              notebook.activeCellIndex = notebook.widgets.indexOf(code);
              return jupyterapp.commands.execute('notebook:run-cell');
            }""",
            [number, source],
        )
        self.settle()

    def settle(self, quiet: float = 0.4, patience: float = 20) -> None:
        """Wait until kernel and page have been at rest for `quiet` seconds."""
        deadline = time.monotonic() + patience
        seen, since = None, time.monotonic()
        while time.monotonic() < deadline:
            state = self.page.evaluate(f"[heard.changes.length, {KERNEL}.status]")
            if state != seen or state[1] != "idle":
                seen, since = state, time.monotonic()
            elif time.monotonic() - since > quiet:
                return
            self.page.wait_for_timeout(50)
        self.problems.append(f"the page did not come to rest within {patience} s")

    def faults(self) -> list[str]:
        """Everything that has gone wrong since the lesson was opened."""
        shown = self.page.locator(
            ".jp-OutputArea-output [role=alert], .jupyter-widgets.jp-mod-error,"
            " .jp-OutputArea-output:has-text('Error displaying widget')"
        )
        return [
            *self.problems,
            *self.page.evaluate("heard.problems"),
            *self.page.evaluate(CELL_PROBLEMS, RAISES),
            *shown.all_inner_texts(),
        ]

    # Language

    def language(self) -> str:
        """The label of the button that is pressed."""
        return self.page.locator(".widget-toggle-buttons button.mod-active").first.inner_text()

    def choose(self, label: str) -> None:
        """Click a button of the language switch and wait for everything to be redrawn."""
        self.page.locator(
            ".widget-toggle-buttons button", has_text=re.compile(f"^{re.escape(label)}$")
        ).first.click()
        self.settle()

    def visible_prose(self, language: str) -> list[bool]:
        """For each prose cell of `language`, whether it can be seen."""
        return self.page.evaluate(PROSE, language)

    def slider_labels(self) -> list[str]:
        return self.page.locator(LABELS).all_inner_texts()

    def labels_cut_off(self) -> list[str]:
        return self.page.eval_on_selector_all(
            LABELS,
            "all => all.filter(l => l.scrollWidth > l.clientWidth).map(l => l.innerText)",
        )

    def pictures(self) -> list[str]:
        """The pictures inside widgets, each as a short hash of its address."""
        addresses = self.page.eval_on_selector_all(
            ".jp-OutputArea-output .jupyter-widgets img", "all => all.map(img => img.src)"
        )
        return [hashlib.sha256(address.encode()).hexdigest()[:8] for address in addresses]

    # What can be seen, and by whom

    def descriptions(self) -> list[str]:
        """The alternative text of each picture in the outputs; empty where it has none."""
        described = self.page.eval_on_selector_all(
            ".jp-OutputArea-output img", "all => all.map(img => img.alt)"
        )
        # JupyterLab calls a picture in HTML so that has none.
        return ["" if words == "Image" else words for words in described]

    def misfits(self) -> list[str]:
        """What sticks out of its place at the size of this window."""
        return self.page.evaluate(MISFITS)

    def contrasts(self) -> list[tuple[float, str]]:
        """The contrast of each pair of colours in the outputs' text, and where it occurs."""
        return [tuple(pair) for pair in self.page.evaluate(CONTRAST)]

    def use_theme(self, name: str) -> None:
        """Change JupyterLab's theme and wait until it is there."""
        change = "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})"
        self.page.evaluate(change, name)
        self.page.wait_for_selector(f"body[data-jp-theme-name='{name}']", state="attached")
        self.settle()

    # Sliders

    def handles(self) -> list[Handle]:
        found = self.page.query_selector_all(
            ".jp-OutputArea-output :is(.noUi-handle[role=slider], .course-slider input)"
        )
        return [Handle(self, element) for element in found]

    def screenshots(self, language: str) -> list[Path]:
        """Photograph the whole notebook, from top to bottom, in pieces that can be read."""
        page, height = self.page, SCREENSHOT_HEIGHT
        page.set_viewport_size(WINDOW | {"height": height})
        panel = page.query_selector(".jp-NotebookPanel-notebook .jp-WindowedPanel-outer")
        size = panel.bounding_box()
        total, before = _length(panel), None
        while total != before:  # JupyterLab is still laying the cells out
            page.wait_for_timeout(200)
            total, before = _length(panel), total
        SCREENSHOTS.mkdir(exist_ok=True)
        for old in SCREENSHOTS.glob(f"{self.name}-{language}-*.png"):
            old.unlink()
        files, top = [], 0
        while top < total:
            at = panel.evaluate(
                "(panel, top) => { panel.scrollTop = top; return panel.scrollTop }", top
            )
            page.wait_for_timeout(100)
            skip = top - at  # of the last piece, what the one before it has shown
            clip = size | {"y": size["y"] + skip, "height": min(size["height"], total - at) - skip}
            files.append(SCREENSHOTS / f"{self.name}-{language}-{len(files) + 1}.png")
            page.screenshot(path=files[-1], clip=clip)
            top += int(size["height"])
        page.set_viewport_size(WINDOW)
        return files


def _length(panel: ElementHandle) -> float:
    """How many pixels a notebook is long, without the empty page below its last cell."""
    return panel.evaluate(
        """panel => panel.scrollTop - panel.getBoundingClientRect().top
            + Math.max(...[...panel.querySelectorAll('.jp-Cell')]
                .map(cell => cell.getBoundingClientRect().bottom))"""
    )


@dataclass
class Handle:
    """One slider's handle, moved by keys and by the mouse."""

    screen: Screen
    element: ElementHandle
    seconds: list[float] = field(default_factory=list)  # from each input to its new picture
    at: dict[str, str] = field(default_factory=dict)  # what is beside the slider, per position
    moved_by: set[str] = field(default_factory=set)

    KEYS = ("Home", "ArrowRight", "ArrowRight", "PageUp", "End", "ArrowLeft", "PageDown")
    STOPS = (0.0, 0.35, 1.0, 0.7)  # of the way, for the mouse
    PATIENCE = 5.0
    MOST_TABS = 12  # the player's buttons stand before its second slider

    @property
    def label(self) -> str:
        return self.element.evaluate(
            "handle => handle.closest('.widget-slider, .course-slider')"
            ".querySelector('.widget-label, .course-label').innerText"
        )

    @property
    def position(self) -> str:
        return self.element.get_attribute("aria-valuetext")

    def picture(self) -> str:
        """What stands beside the sliders: the words, and pictures by their addresses."""
        return self.element.evaluate(
            """handle => {
              const area = handle.closest('.jp-OutputArea-output').cloneNode(true);
              area.querySelectorAll('.widget-slider, .course-controls').forEach(s => s.remove());
              return area.innerHTML.replace(/id="[^"]*"/g, '');
            }"""
        )

    def tabs(self) -> int | None:
        """How often Tab is pressed from the cell until the handle has the focus; None if never."""
        self.element.evaluate(
            """handle => {
              const notebook = jupyterapp.shell.currentWidget.content;
              const cell = notebook.widgets.findIndex(cell => cell.node.contains(handle));
              notebook.activeCellIndex = cell;
              notebook.mode = 'command';
              notebook.widgets[cell].node.focus();
            }"""
        )
        for pressed in range(1, self.MOST_TABS + 1):
            self.screen.page.keyboard.press("Tab")
            if self.element.evaluate("handle => handle === document.activeElement"):
                return pressed
        return None

    def try_everything(self) -> list[str]:
        """Go to both ends and some places between, by keys and by mouse; return what is wrong."""
        self.element.scroll_into_view_if_needed()
        complaints = []
        for key in self.KEYS:
            before = self.position
            complaints += self._move(key, lambda key=key: self.element.press(key))
            if (
                key == "ArrowRight"
                and "ArrowRight" not in self.moved_by
                and before == self.position
            ):
                complaints.append(f"{self.label}: {key} does not move it from {before}")
            self.moved_by.add(key)
        for stop in self.STOPS:
            complaints += self._move(f"drag to {stop:.0%}", lambda stop=stop: self._drag(stop))
        if len(self.at) < 2:
            complaints.append(f"{self.label}: never moved")
        return complaints

    def _move(self, what: str, act) -> list[str]:
        """Do `act`; where it moved the handle, the picture has to follow."""
        before = self.position
        seen = self.screen.page.evaluate("heard.changes.length")
        act()
        if self.position == before:
            return []
        seconds = self._until_painted(seen)
        where = f"{self.label}, {what}, {before} → {self.position}"
        if seconds is None:
            return [f"{where}: the picture did not change"]
        self.screen.settle(quiet=0.25)
        self.seconds.append(self._last_change(seen) if "drag" in what else seconds)
        shown, known = self.picture(), self.at.get(self.position)
        self.at[self.position] = shown
        if known is not None and shown != known:
            return [f"{where}: not the picture that this position had before"]
        return []

    def _until_painted(self, seen: int) -> float | None:
        """Seconds from the input to the first new picture in this slider's output."""
        deadline = time.monotonic() + self.PATIENCE
        while time.monotonic() < deadline:
            times = self._changes(seen)
            if times:
                return times[0]
            self.screen.page.wait_for_timeout(20)
        return None

    def _last_change(self, seen: int) -> float:
        return self._changes(seen)[-1]

    def _changes(self, seen: int) -> list[float]:
        found = self.element.evaluate(
            """(handle, seen) => {
              const area = handle.closest('.jp-OutputArea-output');
              return heard.changes.slice(seen).filter(c => c.area === area).map(c => c.after);
            }""",
            seen,
        )
        return [milliseconds / 1000 for milliseconds in found]

    def _drag(self, stop: float) -> None:
        """Drag the handle with the mouse to a fraction of the track, in small steps."""
        mouse = self.screen.page.mouse
        handle, (left, right) = self.element.evaluate(PLACES)
        y = self.element.bounding_box()
        middle = y["y"] + y["height"] / 2
        mouse.move(handle, middle)
        mouse.down()
        mouse.move(left + stop * (right - left), middle, steps=8)
        mouse.up()


def percentile(percent: int, seconds: list[float]) -> float:
    """The time that `percent` of them do not exceed."""
    if len(seconds) == 1:
        return seconds[0]
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1]
