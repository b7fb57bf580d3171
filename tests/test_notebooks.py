"""Every notebook keeps every rule of `notebook_rules`, and every rule notices what it is for."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from course_lib.site import contents
from support import notebook_rules as rules
from support.notebooks import (
    FOLDER,
    IGNORED_OUTPUT,
    RAISES,
    ROOT,
    WIDGET_VIEW,
    Lesson,
    build,
    lessons,
    markdown,
    prose,
    python,
    tags,
    take_apart,
)

# Cells whose outputs are not compared, (lesson, last line of the cell): why. Set-up cells, which
# name the machine, need no entry.
IGNORED_OUTPUTS = {
    ("00_start_here", "counts_explorer(measured, start=4)"): "wall times",
    ("02_manual_recomputation", "Table(headers, table)"): "wall times",
    ("03_torch_utils_checkpoint", "segments_explorer(segments)"): "a live widget",
    ("03_torch_utils_checkpoint", "slowdown_table(time_kinds())"): "wall times",
    (
        "03_torch_utils_checkpoint",
        '    en=f"each call of checkpoint adds {more} to the step")',
    ): "wall times",
    ("03_torch_utils_checkpoint", "Table(names, rows)"): "wall times",
    ("03_torch_utils_checkpoint", "Museum()"): "a live widget",
    ("03_torch_utils_checkpoint", "Answers()"): "a live widget",
    (
        "04_lightning_flag",
        "runs = {flag: train(flag, callbacks=bar) for flag in (False, True)}",
    ): "wall times",
    ("04_lightning_flag", "show_runs(runs)"): "wall times",
    ("04_lightning_flag", "every_explorer(every, depth=8)"): "a live widget",
    ("04_lightning_flag", "Table(headers, rows)"): "wall times",
    ("05_placing_checkpoints", "chain_counts_explorer(counts, start=100)"): "a live widget",
    ("05_placing_checkpoints", "dropout_explorer(by_dropout, start=10)"): "a live widget",
    ("05_placing_checkpoints", "budget_explorer(budgets)"): "a live widget",
    ("05_placing_checkpoints", "Placement(uneven, budget)"): "a live widget",
    ("05_placing_checkpoints", "nested_player(Plan((0, (1, 2), 3)), four)"): "a live widget",
    ("05_placing_checkpoints", "nested_player(nested_plan(6, 1), six)"): "a live widget",
    (
        "05_placing_checkpoints",
        "survivors_explorer(uneven, (2, 3, 5, 6))  # two blocks of each of two stages",
    ): "a live widget",
    **{
        ("05_placing_checkpoints", f"display(show_puzzle({n}), board_{n})"): "a live widget"
        for n in (1, 2, 3, 4)
    },
    ("06_choosing_what_to_recompute", "frontier_explorer(score)"): "a live widget",
    ("06_choosing_what_to_recompute", "Storing(score, [1, 3, 5])"): "a live widget",
    ("06_choosing_what_to_recompute", "budget_explorer(points, not_compiled)"): "a live widget",
    ("06_choosing_what_to_recompute", "break_even_explorer(blocks_by_width)"): "a live widget",
    ("06_choosing_what_to_recompute", "chunks_explorer(chunk_sweep)"): "a live widget",
    ("07_your_own_model", "fits_explorer(sizes)"): "a live widget",
    ("08_more_than_one_device", "ranks_explorer(swept)"): "a live widget",
}


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("lesson", lessons(), ids=str)
def test_lesson(lesson, rule):
    complaints = rule(lesson)
    assert not complaints, f"{rule.__doc__}\n" + "\n".join(complaints)


def test_outputs_that_are_not_compared_are_these():
    tagged = {
        (str(lesson), cell.source.rstrip().splitlines()[-1])
        for lesson in lessons()
        for cell in lesson.code
        if IGNORED_OUTPUT in tags(cell) and "setup" not in tags(cell)
    }
    assert sorted(tagged) == sorted(IGNORED_OUTPUTS)


def test_every_file_in_the_notebooks_folder_is_a_lesson_of_the_contents_or_the_glossary():
    names = [path.name for path in sorted(FOLDER.glob("*.ipynb"))]
    names.remove("glossary.ipynb")
    assert all(re.fullmatch(r"\d\d_[a-z_]+\.ipynb", name) for name in names), names
    assert names == [f"{lesson.name}.ipynb" for lesson in contents.LESSONS if lesson.exists]
    numbers = [name[:2] for name in names]
    assert numbers == sorted(set(numbers)), "two of a number"


@pytest.mark.parametrize(
    "path",
    [ROOT / "course.py", *sorted((ROOT / "course_lib").rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_chinese_that_the_program_speaks(path):
    """Messages, titles and labels keep to the typography and the terms of the prose."""
    texts = rules.chinese_strings(path.read_text(encoding="utf-8"))
    complaints = [fault for text in texts for fault in rules.misprints(text)]
    complaints += [fault for text in texts for fault in rules.wrong_words(text, "zh")]
    assert not complaints, "\n".join(complaints)


# The rules themselves


def ran(cell, count, *outputs):
    """`cell` as a run would have left it."""
    cell.execution_count, cell.outputs = count, list(outputs)
    return cell


def result(**data) -> nbformat.NotebookNode:
    """An output that holds `data`; `text_html` means text/html, and so on."""
    named = {kind.replace("_", "/"): value for kind, value in data.items()}
    return nbformat.v4.new_output("display_data", data=named)


SOLUTION = """\
展开之前先想一想。

<details><summary>解答</summary>

```python
def double(n):
    return 2 * n
```

</details>"""


def good_cells() -> dict[str, nbformat.NotebookNode]:
    """A small lesson that keeps every rule; each test below spoils one of its cells."""
    stub = "def double(n):\n    return None\n\n\ncheck_double(double)"
    zh, en = prose(
        "梯度检查点（gradient checkpointing）用 1.5 倍时间，把 $O(n)$ 的激活内存降到 "
        "$O(\\sqrt n)$；`checkpoint` 在[另一课](other.ipynb#二-·-Two)里。",
        "Gradient checkpointing pays 1.5 times the time to bring $O(n)$ of activation memory "
        "down to $O(\\sqrt n)$; for `checkpoint` see [another lesson](other.ipynb#二-·-Two).",
    )
    english = SOLUTION.replace("展开之前先想一想。", "Think first.").replace("解答", "Solution")
    hint_zh, hint_en = prose(SOLUTION, english)
    return {
        "title": markdown("# 草稿 · Scratch"),
        "zh": zh,
        "en": en,
        "setup": ran(python("display('ready')", "setup"), 1, result(text_plain="'ready'")),
        "heading": markdown("## 预测 · Predict"),
        "predict": ran(python("guess('peak')", "predict"), 2),
        "plot": ran(
            python("plot()"), 3, result(text_plain="peak 12.0 MiB", image_png="iVBORw0KGgo=")
        ),
        "exercise": markdown("## 练习 1 · Exercise 1"),
        "first zh": hint_zh,
        "first en": hint_en,
        "first": ran(python(stub, "exercise"), 4),
        "another": markdown("## 练习 2 · Exercise 2"),
        "second zh": nbformat.from_dict(hint_zh),
        "second en": nbformat.from_dict(hint_en),
        "second": ran(python(stub, "exercise"), 5),
    }  # fmt: skip


@pytest.fixture
def good(tmp_path) -> dict[str, nbformat.NotebookNode]:
    build(tmp_path / "other.ipynb", markdown("# 其他 · Other"), markdown("## 二 · Two"))
    return good_cells()


@pytest.fixture
def lesson_of(tmp_path):
    """Writes cells to a notebook, without those that are None."""

    def write(cells: dict) -> Lesson:
        there = [cell for cell in cells.values() if cell is not None]
        for number, cell in enumerate(there):
            cell.id = f"c{number}"
        return build(tmp_path / "00_scratch.ipynb", *there)

    return write


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_a_rule_is_silent_about_a_good_lesson(rule, good, lesson_of):
    assert rule(lesson_of(good)) == []


def spoil(cell: str, old: str, new: str):
    """A change of one cell's source; every occurrence, so that the spoilt cell stays coherent."""

    def change(cells):
        assert old in cells[cell].source
        cells[cell].source = cells[cell].source.replace(old, new)

    return change


def tag(cell: str, *new: str):
    return lambda cells: cells[cell].metadata.update(tags=list(new))


def drop(cell: str):
    return lambda cells: cells.update({cell: None})


def show(cell: str, *outputs):
    return lambda cells: cells[cell].update(outputs=list(outputs))


BAD = [
    (rules.known_tags, tag("plot", "explorer"), "explorer"),
    (rules.known_tags, tag("plot", "zh"), "zh"),
    (rules.known_tags, tag("heading", "setup"), "setup"),
    (rules.bilingual_headings, tag("heading", "zh"), "a heading in prose"),
    (rules.bilingual_headings, spoil("heading", " · Predict", ""), "not 中文 · English"),
    (rules.bilingual_headings, spoil("heading", "预测 · Predict", "Predict · 预测"), "no Chinese"),
    (rules.bilingual_headings, spoil("heading", "## ", "### "), "level 3 after level 1"),
    (rules.bilingual_headings, spoil("heading", "## ", "# "), "level 1 after level 1"),
    (rules.bilingual_headings, spoil("heading", "Predict", "Predict\n\nGuess"), "nor one heading"),
    (rules.bilingual_headings, tag("zh"), "neither prose"),
    (rules.bilingual_headings, spoil("zh", "梯度", "\n## 二 · Two\n梯度"), "a heading in prose"),
    (rules.bilingual_headings, drop("title"), "not the title"),
    (rules.paired_prose, drop("en"), "no English cell follows"),
    (rules.paired_prose, drop("zh"), "no Chinese cell before it"),
    (rules.paired_prose, spoil("zh", '"zh"', '"en"'), "does not begin with"),
    (rules.same_in_both_languages, spoil("en", "1.5", "1.6"), "only English ['1.6']"),
    (rules.same_in_both_languages, spoil("zh", "在[另", "有 3 课：[另"), "only Chinese has ['3']"),
    (rules.same_in_both_languages, spoil("en", "O(n)", "O(m)"), "formulas"),
    (rules.same_in_both_languages, spoil("zh", "`checkpoint`", "它"), "code: only"),
    (rules.same_in_both_languages, spoil("zh", "other.ipynb", "01.ipynb"), "links"),
    (rules.same_in_both_languages, spoil("first zh", "2 * n", "n + n"), "code blocks differ"),
    (rules.same_in_both_languages, spoil("zh", "梯度检查点", "\n- 梯度检查点"), "list items"),
    (rules.anatomy, tag("setup"), "not tagged setup"),
    (rules.anatomy, tag("predict"), "nothing to predict"),
    (rules.anatomy, tag("second"), "1 exercises"),
    (rules.anatomy, spoil("first", "check_double(double)", "double(2)"), "checker's call"),
    (rules.anatomy, spoil("first zh", "解答", "提示"), "1 folded solutions"),
    (rules.anatomy, spoil("first zh", "2 * n", "n * 2"), "the two languages differ"),
    (rules.narrow_code, spoil("plot", "plot()", f"plot('{53 * '宽'}')"), "114 columns"),
    (rules.short_code, spoil("plot", "plot()", "plot()\n" * 21), "21 lines"),
    (rules.no_raw_results, spoil("plot", "plot()", "plot(), 1"), "ends in (plot(), 1)"),
    (rules.no_raw_results, spoil("plot", "plot()", "{'a': 1}"), "ends in {'a': 1}"),
    (rules.no_raw_results, spoil("plot", "plot()", "f'{n} µs'"), "ends in f'{n} µs'"),
    (rules.no_raw_results, spoil("plot", "plot()", "1 == 1"), "ends in 1 == 1"),
    (rules.no_raw_results, spoil("plot", "plot()", "print(trace.peak_phase)"), "prints trace"),
    (rules.links_resolve, spoil("zh", "other.ipynb", "01.ipynb"), "leads nowhere"),
    (rules.links_resolve, spoil("zh", "#二-·-Two", "#Three"), "no such heading"),
    (rules.clean_run, lambda cells: ran(cells["plot"], 4), "not one run"),
    (rules.clean_run, lambda cells: ran(cells["plot"], None), "not one run"),
    (
        rules.clean_run,
        show("plot", nbformat.v4.new_output("error", ename="KeyError", evalue="'x'", traceback=[])),
        "KeyError",
    ),
    (rules.clean_run, show("plot", nbformat.v4.new_output("stream", name="stderr")), "stderr"),
    (rules.clean_run, show("plot", result(text_plain="UserWarning: x")), "UserWarning:"),
    (
        rules.clean_run,
        show("plot", nbformat.v4.new_output("stream", text="findfont: no such font")),
        "findfont",
    ),
    (rules.lean_file, show("plot", result(image_png="A" * 1_000_000)), "is too much"),
    (
        rules.lean_file,
        lambda cells: cells["plot"].metadata.update(execution={"iopub.status.idle": "2020"}),
        "metadata.execution",
    ),
    (
        rules.widgets_have_a_picture,
        show("plot", result(**{WIDGET_VIEW: {"model_id": "1"}, "text_plain": "peak"})),
        "without a picture",
    ),
    (
        rules.widgets_have_a_picture,
        show("plot", result(text_plain="VBox(children=(IntSlider(value=0),))")),
        "a widget's repr",
    ),
    (
        rules.widgets_have_a_picture,
        show("plot", result(text_plain="<Figure size 640x480>", image_png="iVBORw0KGgo=")),
        "a picture whose words",
    ),
    (rules.no_absolute_paths, show("plot", result(text_plain="/home/ann/x.py")), "/home/ann"),
    (rules.no_absolute_paths, show("plot", result(text_plain=r"at C:\Users")), r"C:\Users"),
    (rules.no_absolute_paths, spoil("plot", "plot()", f"open('{Path.home()}/x')"), "absolute"),
    (rules.no_javascript, show("plot", result(application_javascript="1")), "javascript"),
    (rules.no_javascript, show("plot", result(text_html="<SCRIPT>1</script>")), "<SCRIPT"),
    (rules.no_javascript, show("plot", result(text_html="<b onclick='x()'>")), "onclick"),
    (rules.no_javascript, show("plot", result(text_html="<a href='JavaScript:x()'>")), "Script:"),
    (
        rules.no_javascript,
        show("plot", result(**{"image_svg+xml": "<svg width='1'/onload\n=x()>"})),
        "onload",
    ),
    (rules.no_javascript, show("plot", result(text_markdown="<iframe src='x'>")), "<iframe"),
    (rules.no_javascript, spoil("zh", "用 1.5 倍", "<img src=x onerror=x()>"), "onerror"),
    (rules.no_javascript, spoil("en", "other.ipynb", "javascript:alert(1)//"), "javascript:"),
    (rules.glossary, spoil("zh", "梯度检查点（", "激活检查点（"), "梯度检查点、检查点"),
    (rules.glossary, spoil("zh", "激活内存", "内存"), "English says 'activation"),
    (rules.glossary, spoil("en", "activation memory", "VRAM"), "GPU memory"),
    (rules.chinese_typography, spoil("zh", "用 1.5 倍", "用1.5 倍"), "no space"),
    (rules.chinese_typography, spoil("zh", "1.5 倍", "1.5倍"), "no space"),
    (rules.chinese_typography, spoil("zh", "`checkpoint` 在", "`checkpoint`在"), "no space"),
    (rules.chinese_typography, spoil("zh", "时间，", "时间, "), "half-width punctuation"),
    (rules.chinese_typography, spoil("zh", "时间，", "时间."), "half-width punctuation"),
    (
        rules.chinese_typography,
        spoil("zh", "（gradient checkpointing）", " (gradient checkpointing) "),
        "half-width parentheses",
    ),
    (rules.chinese_typography, spoil("zh", "时间，", "时间， "), "a space beside"),
    (rules.chinese_typography, spoil("zh", "另一课", '"另一课"'), "straight quotation marks"),
    (rules.chinese_typography, spoil("heading", "预测", "预测peak"), "no space"),
    (rules.chinese_typography, spoil("plot", "plot()", "plot('共3 层')"), "no space"),
    (rules.chinese_typography, spoil("plot", "plot()", "plot(f'{n} 层,完')"), "half-width"),
    (rules.english_typography, spoil("en", "time to", "time，to"), "full-width"),
    (rules.english_typography, spoil("en", "another lesson", "另一课"), "Chinese: 另一课"),
    (rules.markup_closes, spoil("zh", "用 1.5 倍", "**用：**1.5 倍"), "bold that does not close"),
    (rules.markup_closes, spoil("first zh", "</details>", ""), "1 <details>, 0 </details>"),
    (rules.markup_closes, spoil("first zh", "</summary>\n", "</summary>先"), "blank line"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "change", "complaint"), BAD, ids=lambda x: getattr(x, "__name__", None)
)
def test_a_rule_complains_about_a_bad_lesson(rule, change, complaint, good, lesson_of):
    change(good)
    complaints = rule(lesson_of(good))
    assert any(complaint in found for found in complaints), complaints


def test_every_rule_has_a_bad_lesson():
    assert {rule for rule, _, _ in BAD} == set(rules.RULES)


def test_an_error_that_is_meant_is_no_complaint(good, lesson_of):
    failed = nbformat.v4.new_output("error", ename="TypeError", evalue="no", traceback=["no"])
    good["plot"] = ran(python("Trainer(gradient_checkpointing=True)", RAISES), 3, failed)
    assert rules.clean_run(lesson_of(good)) == []


def test_widget_state_is_noticed(good, lesson_of):
    path = lesson_of(good).path
    content = json.loads(path.read_text(encoding="utf-8"))
    content["metadata"]["widgets"] = {}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert rules.lean_file(Lesson(path)) == ["metadata.widgets"]


@pytest.mark.parametrize(
    "fine",
    [
        "用 `k` 个检查点，峰值降到 12.5 MiB（约 30 %）。",
        "1. 先前向，再反向。\n2. 看 `trace.peak`：多少？",
        "| 角色 | 字节 |\n| --- | ---: |\n| 参数 | 1,024 |\n| （无） | 0 |",
        "**激活值**由 *前向* 留下，见 [PyTorch 文档](https://pytorch.org/docs)。",
        "“文章说的”不一定对 —— 量一量。",
        "$n = 12$ 时，$\\sqrt{n} \\approx 3.5$，取 3 或 4。",
        "> 引用：原文如此。\n\n- （可选）再试一次！",
        "`x` 的形状是 (batch, sequence, width)，都是 float32。",
    ],
)
def test_good_chinese_is_not_complained_about(fine):
    assert rules.misprints(take_apart(fine).words) == []


def test_small_numbers_may_be_words(good, lesson_of):
    good["zh"].source += "\n\n多 1 字节，每段 2 块，一次一段。"
    good["en"].source += "\n\nOne byte more, two blocks each, 1 segment at a time."
    assert rules.same_in_both_languages(lesson_of(good)) == []


def test_prose_is_taken_apart():
    found = take_apart(
        "Keep `x` and **1,024** of 12.5 MiB in float32, $\\sqrt{ n }$, see "
        "[docs](https://a.b/c#d) and https://e.f/g.\n\n- one\n- two\n\n```python\ny = 7\n```\n"
    )
    assert found.code == {"x"} and found.formulas == {"\\sqrt{n}"}
    assert found.links == {"https://a.b/c#d", "https://e.f/g"}
    assert found.numbers == {"1024": 1, "12.5": 1}
    assert found.blocks == ["y = 7\n"] and found.shape["list items"] == 2
    assert "`" not in found.words and "https" not in found.words
