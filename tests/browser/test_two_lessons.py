"""Two lessons side by side: each is read in a language of its own, also while it is busy."""

import pytest

from support.lab import Screen
from support.notebooks import build, lessons, markdown, prose, python, tags

pytestmark = [pytest.mark.browser, pytest.mark.slow]

(SETUP,) = (cell for cell in lessons()[0].code if "setup" in tags(cell))
TABLE = python(
    "from course_lib.language import Table, say\n"
    "display(Table([('包', 'package'), ('MiB', 'MiB')], [[('甲', 'A'), 1]]))\n"
    "say(zh='说一句。', en='One sentence.')"
)
SLOW = python("import time; time.sleep(30)")

OPEN_BESIDE = """
async path => {
  const beside = await jupyterapp.commands.execute(
    'docmanager:open', {path, options: {mode: 'split-right'}});
  await beside.revealed;
  await beside.sessionContext.ready;
  await beside.sessionContext.session.kernel.info;
}
"""
RUN = """
async ([path, from, to, wait = true]) => {
  const panel = [...jupyterapp.shell.widgets('main')].find(p => p.context?.path.endsWith(path));
  jupyterapp.shell.activateById(panel.id);
  while (jupyterapp.shell.currentWidget !== panel) await new Promise(r => setTimeout(r, 20));
  const run = [];
  for (let i = from; i < to; i++) {
    panel.content.activeCellIndex = i;
    run.push(jupyterapp.commands.execute('notebook:run-cell'));
  }
  if (wait) await Promise.all(run);
}
"""
# What of a notebook can be seen of the two languages: prose, and words in outputs.
SEEN = """
path => {
  const panel = [...jupyterapp.shell.widgets('main')].find(p => p.context?.path.endsWith(path));
  const seen = {};
  for (const language of ['zh', 'en']) {
    const cells = [...panel.node.querySelectorAll('.jp-MarkdownCell')]
      .filter(cell => cell.querySelector(`span[lang=${language}]:empty`));
    const words = [...panel.node.querySelectorAll(`.jp-OutputArea [lang=${language}]`)]
      .filter(part => !part.closest('[hidden]'));
    const visible = parts => parts.filter(part => part.getClientRects().length > 0).length;
    seen[language] = [visible(cells), cells.length, visible(words), words.length];
  }
  return seen;
}
"""


def lesson(folder, name, *cells):
    zh, en = prose(f"{name} 的中文。", f"The English of {name}.")
    return build(folder / f"{name}.ipynb", markdown("# 标题 · Title"), zh, en, SETUP, *cells)


@pytest.fixture(scope="module")
def screen(browser, server):
    """94 on the left and 95 on the right, each with its set-up cell and a table run."""
    for name in ("94_left", "95_right"):
        lesson(server.folder, name, TABLE, SLOW, *(markdown(f"{i}\n\n" * 9) for i in range(9)))
    opened = Screen.open(browser, server, "94_left")
    opened.page.evaluate(OPEN_BESIDE, "notebooks/95_right.ipynb")
    for name in ("95_right", "94_left"):
        opened.page.evaluate(RUN, [f"{name}.ipynb", 3, 5])
    opened.settle()
    yield opened
    opened.close()


def panel(screen, name):
    found = screen.page.locator(".jp-NotebookPanel")
    return found.filter(has_text=f"{name} 的中文") if name else found


def press(screen, name, label):
    panel(screen, name).locator(".widget-toggle-buttons button", has_text=label).first.click()


def reads(screen, name):
    """The languages that can be read there; all of a language's words, or none."""
    found = screen.page.evaluate(SEEN, f"{name}.ipynb")
    for cells, all_cells, words, all_words in found.values():
        assert all_cells == 1 and all_words >= 3
        assert (cells, words) in ((0, 0), (all_cells, all_words)), found
    return {language for language, (cells, *_) in found.items() if cells}


def test_each_is_read_in_its_own_language(screen):
    press(screen, "94_left", "English")
    press(screen, "95_right", "中文")
    screen.settle()
    assert reads(screen, "94_left") == {"en"} and reads(screen, "95_right") == {"zh"}
    press(screen, "94_left", "中文 + English")
    screen.settle()
    assert reads(screen, "94_left") == {"zh", "en"} and reads(screen, "95_right") == {"zh"}
    assert [fault for fault in screen.faults() if "never ran" not in fault] == []


def test_it_answers_while_a_cell_runs(screen):
    press(screen, "94_left", "English")
    screen.page.evaluate(RUN, ["94_left.ipynb", 5, 6, False])
    screen.page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session.kernel"
                                  ".status === 'busy'")  # fmt: skip
    for label, languages in (
        ("中文", {"zh"}),
        ("中文 + English", {"zh", "en"}),
        ("English", {"en"}),
    ):
        press(screen, "94_left", label)
        assert reads(screen, "94_left") == languages and reads(screen, "95_right") == {"zh"}
    screen.page.evaluate("jupyterapp.commands.execute('notebook:interrupt-kernel')")
    screen.settle()
    screen.page.evaluate("heard.problems.length = 0")  # the interrupt
    screen.page.evaluate(RUN, ["94_left.ipynb", 4, 5])
    assert reads(screen, "94_left") == {"en"}  # also words that came later


def test_it_is_within_reach_at_the_end_of_a_lesson(screen):
    """By mouse and by keys, named for a screen reader, and above what can be read."""
    left = panel(screen, "94_left")
    scroller = left.locator(".jp-WindowedPanel-outer")
    scroller.evaluate("panel => { panel.scrollTop = panel.scrollHeight }")
    bar = left.get_by_role("group", name="Course language").last
    place, below = bar.bounding_box(), scroller.bounding_box()
    assert place["y"] + place["height"] <= below["y"]
    chinese = bar.get_by_role("button", name="中文", exact=True)
    chinese.focus()
    screen.page.keyboard.press("Enter")
    assert reads(screen, "94_left") == {"zh"} and reads(screen, "95_right") == {"zh"}
    assert chinese.get_attribute("aria-pressed") == "true"
    screen.page.keyboard.press("Tab")
    screen.page.keyboard.press("Space")
    assert reads(screen, "94_left") == {"en"}
    screen.settle()


def test_the_other_lesson_and_a_new_run_of_the_first_cell_change_nothing(screen):
    """Nor is a lesson whose switch was cleared away left with one language."""
    screen.page.evaluate(RUN, ["95_right.ipynb", 3, 4])
    screen.settle()
    assert len(panel(screen, "95_right").locator(".course-language-bar").all()) == 1
    assert reads(screen, "94_left") == {"en"}
    screen.page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    screen.page.wait_for_timeout(300)
    prose = screen.page.evaluate(SEEN, "95_right.ipynb")
    assert [prose[language][:2] for language in ("zh", "en")] == [[1, 1], [1, 1]]
    assert panel(screen, "95_right").locator(".course-language-bar").count() == 0
    assert reads(screen, "94_left") == {"en"}
