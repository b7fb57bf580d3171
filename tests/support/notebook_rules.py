"""What every notebook of the course keeps to; each rule takes a lesson and returns complaints."""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeGuard

from nbformat import NotebookNode

from course_lib.language import columns
from course_lib.site.contents import edition_of
from support.glossary import missing_terms, wrong_words
from support.notebooks import (
    FENCE,
    IGNORED_OUTPUT,
    RAISES,
    TAG,
    TOKEN,
    WIDGET_VIEW,
    Lesson,
    Prose,
    headings,
    named,
    prose_language,
    shown_text,
    tags,
    take_apart,
)

MAX_BYTES = 1_000_000
MAX_LINES = 20  # of a code cell, blank ones not counted; fifteen is what to aim at
MAX_COLUMNS = 104  # of a line of code; a Chinese character takes two
FOLDED = ("jupyter", {"source_hidden": True})  # code that serves the lesson and teaches nothing
LONGER_CELLS = {"setup", "exercise"}
TAGS = {
    "markdown": {"zh", "en"},
    "code": {"setup", "predict", "exercise", IGNORED_OUTPUT, RAISES},
}

Rule = Callable[[Lesson], list[str]]


# Structure


def known_tags(lesson: Lesson) -> list[str]:
    """Only the tags in TAGS, each on its kind of cell."""
    return [
        f"{named(cell)}: no such tag on a {cell.cell_type} cell: {tag}"
        for cell in lesson.cells
        for tag in tags(cell)
        if tag not in TAGS.get(cell.cell_type, set())
    ]


def bilingual_headings(lesson: Lesson) -> list[str]:
    """A heading is a cell of its own, untagged, `## 中文 · English`; the first is the title."""
    complaints = []
    levels = [0]
    for cell in lesson.cells:
        if cell.cell_type != "markdown":
            continue
        if prose_language(cell):
            complaints += [f"{named(cell)}: a heading in prose: {h}" for h in headings(cell.source)]
            continue
        levels.append(len(cell.source) - len(cell.source.lstrip("#")))
        complaints += [f"{named(cell)}: {fault}" for fault in _heading_faults(cell, levels)]
    if not lesson.cells or not lesson.cells[0].source.startswith("# "):
        complaints.append("the first cell is not the title")
    return complaints


def _heading_faults(cell: NotebookNode, levels: list[int]) -> Iterator[str]:
    if tags(cell):
        yield "a heading with a tag, or prose with two language tags"
    if "\n" in cell.source.strip() or not re.match(r"#{1,4} \S", cell.source):
        yield "neither prose with a language tag nor one heading"
        return
    zh, dot, en = cell.source.lstrip("# ").strip().partition(" · ")
    if not dot or " · " in en:
        yield "not 中文 · English"
    elif not re.search(HAN, zh) and zh != en:
        yield "no Chinese on the left"
    elif re.search(HAN, en):
        yield "Chinese on the right"
    if levels[-1] > levels[-2] + 1 or (levels[-1] == 1) != (len(levels) == 2):
        yield f"level {levels[-1]} after level {levels[-2]}"


def paired_prose(lesson: Lesson) -> list[str]:
    """Each Chinese cell is followed by its English one; both begin with their marking span."""
    complaints = []
    languages = [prose_language(cell) for cell in lesson.cells]
    for cell, language, before, after in zip(
        lesson.cells, languages, [None, *languages], [*languages[1:], None], strict=False
    ):
        if language is None:
            continue
        if not cell.source.startswith(f'<span lang="{language}"></span>'):
            complaints.append(f'{named(cell)}: does not begin with <span lang="{language}"></span>')
        if language == "zh" and after != "en":
            complaints.append(f"{named(cell)}: no English cell follows")
        if language == "en" and before != "zh":
            complaints.append(f"{named(cell)}: no Chinese cell before it")
    return complaints


def same_in_both_languages(lesson: Lesson) -> list[str]:
    """A pair has the same figures, formulas, code, links, code blocks, lists and tables."""
    complaints = []
    for chinese, english in lesson.pairs():
        zh, en = take_apart(chinese.source), take_apart(english.source)
        complaints += [f"{named(english)}: {fault}" for fault in _differences(zh, en)]
    return complaints


def _differences(zh: Prose, en: Prose) -> Iterator[str]:
    page = f"{edition_of()}/%s/"  # each language leads to its own of the web edition's
    links = {link.replace(page % "zh", page % "en") for link in zh.links}
    for what in ("code", "formulas", "links"):
        there, here = getattr(zh, what), getattr(en, what)
        there = links if what == "links" else there
        if there != here:
            only_zh, only_en = sorted(there - here), sorted(here - there)
            yield f"{what}: only Chinese has {only_zh}, only English {only_en}"
    only_zh, only_en = (_unmatched(*two) for two in ((zh, en), (en, zh)))
    if only_zh or only_en:
        yield f"numbers: only Chinese has {only_zh}, only English {only_en}"
    if zh.blocks != en.blocks:
        yield "the code blocks differ"
    for what, count in zh.shape.items():
        if count != en.shape[what]:
            yield f"{what}: {count} in Chinese, {en.shape[what]} in English"


SMALL = {
    "1": r"\b(one|once|single)\b|一|单",
    "2": r"\b(two|twice|both)\b|[二两]",
    "3": r"\b(three|third)\b|三",
    "4": r"\bfour\b|四",
}


def _unmatched(here: Prose, there: Prose) -> list[str]:
    """The figures that only one language has, small ones excepted that the other has in words."""
    missing = here.numbers - there.numbers
    return sorted(
        number
        for number, count in missing.items()
        if len(re.findall(SMALL.get(number, r"(?!)"), there.words, re.I)) < count
    )


def anatomy(lesson: Lesson) -> list[str]:
    """Set up first, a prediction, two exercises, each with one solution in both languages."""
    complaints = []
    found = [set(tags(cell)) for cell in lesson.code]
    if not found or "setup" not in found[0]:
        complaints.append("the first code cell is not tagged setup")
    if not any("predict" in tags for tags in found):
        complaints.append("nothing to predict")
    exercises = lesson.exercises()
    if len(exercises) < 2:
        complaints.append(f"{len(exercises)} exercises; there should be two or more")
    for exercise in exercises:
        where = named(exercise.cell)
        if not re.match(r"(\w+ = )?(\w+\.)*check_\w+\(", exercise.check):
            complaints.append(f"{where}: does not end in a checker's call: {exercise.check}")
        if len(exercise.solutions) != 2:
            complaints.append(f"{where}: {len(exercise.solutions)} folded solutions, not 2")
        elif len(set(exercise.solutions)) > 1:
            complaints.append(f"{where}: the solutions in the two languages differ")
    return complaints


def narrow_code(lesson: Lesson) -> list[str]:
    """A line of code can be read without scrolling, in a window of 1280 pixels."""
    return [
        f"{named(cell)}: {width} columns: {line.strip()[:50]}"
        for cell in lesson.code
        for line in cell.source.splitlines()
        if (width := columns(line)) > MAX_COLUMNS
    ]


def short_code(lesson: Lesson) -> list[str]:
    """A code cell shows one thing: at most MAX_LINES lines that are not blank."""
    return [
        f"{named(cell)}: {length} lines"
        for cell in lesson.code
        if not LONGER_CELLS & set(tags(cell))
        and (length := sum(bool(line.strip()) for line in cell.source.splitlines())) > MAX_LINES
    ]


RAW = (
    ast.Compare, ast.BoolOp, ast.BinOp, ast.Constant, ast.JoinedStr, ast.Dict, ast.List, ast.Tuple,
    ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp,
)  # fmt: skip


def no_raw_results(lesson: Lesson) -> list[str]:
    """A result is a sentence, a table or a picture: no tuple, dictionary, string or truth value."""
    complaints = []
    for cell in lesson.code:
        statements = ast.parse(cell.source).body
        last = statements[-1] if statements else None
        if isinstance(last, ast.Expr) and isinstance(last.value, RAW):
            complaints.append(f"{named(cell)}: ends in {ast.unparse(last)[:60]}")
        for call in (node for node in ast.walk(ast.Module(statements, [])) if _prints(node)):
            raw = [part for part in call.args if not _are_words(part)]
            if raw:
                complaints.append(f"{named(cell)}: prints {ast.unparse(raw[0])[:60]}")
    return complaints


def _prints(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print"


def _are_words(part: ast.expr) -> bool:
    """Text, or what makes text of something: a plan, a file, an error's lines."""
    if isinstance(part, (ast.Constant, ast.JoinedStr)):
        return True
    return isinstance(part, ast.Call)


def links_resolve(lesson: Lesson) -> list[str]:
    """A relative link leads to a file that is there and, in a notebook, to a heading of it."""
    complaints = []
    for cell in lesson.cells:
        if cell.cell_type != "markdown":
            continue
        for target in take_apart(cell.source).links:
            if re.match(r"https?://", target):
                continue
            file, _, anchor = target.partition("#")
            path = lesson.path.parent / file if file else lesson.path
            if not path.exists():
                complaints.append(f"{named(cell)}: leads nowhere: {target}")
            elif anchor and path.suffix == ".ipynb" and anchor not in anchors(Lesson(path)):
                complaints.append(f"{named(cell)}: no such heading: {target}")
    return complaints


def anchors(lesson: Lesson) -> set[str]:
    """What JupyterLab calls the headings of a lesson in addresses."""
    return {
        line.lstrip("#").strip().replace(" ", "-")
        for cell in lesson.cells
        if cell.cell_type == "markdown"
        for line in headings(cell.source)
    }


# Stored outputs


def clean_run(lesson: Lesson) -> list[str]:
    """Outputs of one run from top to bottom, in which nothing went wrong."""
    complaints = []
    counts = [cell.execution_count for cell in lesson.code]
    if counts != list(range(1, len(counts) + 1)):
        complaints.append(f"not one run from top to bottom: {counts}")
    for cell, output in _outputs(lesson):
        if output.output_type == "error" and RAISES not in tags(cell):
            complaints.append(f"{named(cell)}: an error: {output.ename}: {output.evalue}")
        if output.get("name") == "stderr":
            complaints.append(f"{named(cell)}: stderr: {output.text[:80]!r}")
        for text in _readable(output):
            if found := re.search(r"\w*Warning:|findfont|Glyph \d+", text):
                complaints.append(f"{named(cell)}: {found[0]} in an output")
    return complaints


def lean_file(lesson: Lesson) -> list[str]:
    """Under a megabyte, no widget state, no traces of the program that ran it."""
    complaints = []
    size = lesson.path.stat().st_size
    if size >= MAX_BYTES:
        complaints.append(f"{size:,} bytes; {MAX_BYTES:,} is too much")
    kept = {"kernelspec", "language_info"}
    complaints += [f"metadata.{key}" for key in sorted(set(lesson.notebook.metadata) - kept)]
    complaints += [
        f"{named(cell)}: metadata.{key}"
        for cell in lesson.cells
        for key in sorted(set(cell.metadata) - {"tags"})
        if (key, cell.metadata[key]) != FOLDED
    ]
    return complaints


def widgets_have_a_picture(lesson: Lesson) -> list[str]:
    """What a widget left in a stored output can be read where no widget runs."""
    complaints = []
    for cell, output in _outputs(lesson):
        data, words = output.get("data", {}), shown_text(output)
        if WIDGET_VIEW in data and not {"image/png", "text/html"} & set(data):
            complaints.append(f"{named(cell)}: a widget without a picture or HTML beside it")
        if _WIDGET_REPR.match(words):
            complaints.append(f"{named(cell)}: a widget's repr: {words[:60]!r}")
        if "image/png" in data and re.match(r"<\w+(\.\w+)* ", words):
            complaints.append(f"{named(cell)}: a picture whose words are {words!r}")
    return complaints


_WIDGET_REPR = re.compile(r"[A-Z]\w*\((children=|value=|description=|.*layout=Layout)|Output\(")


def no_absolute_paths(lesson: Lesson) -> list[str]:
    """Nothing that names a folder of the machine on which it was written."""
    written = [(cell, cell.source) for cell in lesson.cells]
    shown = [(cell, text) for cell, output in _outputs(lesson) for text in _readable(output)]
    return [
        f"{named(cell)}: an absolute path: {found[0]}"
        for cell, text in written + shown
        if (found := _ABSOLUTE.search(text))
    ]


_HERE = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir()} - {"/"}
_ABSOLUTE = re.compile(
    r"(?<![\w.:/<\ue000-])/(?:home|Users|root|tmp|var|opt|usr|mnt|srv|private|workspace)/[\w.-]+"
    r"|\b[A-Za-z]:\\\w+" + "".join(rf"|{re.escape(folder)}\b" for folder in sorted(_HERE))
)


def no_javascript(lesson: Lesson) -> list[str]:
    """Nothing stored, be it output or prose, that would run something in the reader's browser."""
    shown = [(cell, kind, text) for cell, output in _outputs(lesson)
             for kind, text in output.get("data", {}).items()]  # fmt: skip
    complaints = [f"{named(cell)}: {kind}" for cell, kind, _ in shown if "javascript" in kind]
    written = [(cell, "prose", re.sub(r"`[^`\n]+`", "", FENCE.sub("", cell.source)))
               for cell in lesson.cells if cell.cell_type != "code"]  # fmt: skip
    for cell, kind, text in written + shown:
        if kind in ("prose", "text/html", "text/markdown", "image/svg+xml"):
            complaints += [f"{named(cell)}: {found} in {kind}" for found in _RUNS.findall(text)]
    return complaints


_RUNS = re.compile(
    r"<(?:script|iframe|object|embed)\b|javascript:|data:text/html"
    r"|<[a-z][^<>]*[\s\"'/]on\w+\s*=",
    re.I,
)


def _outputs(lesson: Lesson) -> Iterator[tuple[NotebookNode, NotebookNode]]:
    for cell in lesson.code:
        for output in cell.outputs:
            yield cell, output


def _readable(output: NotebookNode) -> Iterable[str]:
    """Everything in an output that is text rather than a picture."""
    if output.output_type == "stream":
        return [output.text]
    if output.output_type == "error":
        return [re.sub(r"\x1b\[[\d;]*m", "", "\n".join([output.evalue, *output.traceback]))]
    return [text for kind, text in output.data.items() if kind.startswith("text/")]


# Words

HAN = r"[\u3400-\u9fff\uf900-\ufaff]"
LATIN = rf"[A-Za-z0-9{TOKEN}]"
UNKNOWN = "\ue001"  # an f-string's value: Han or not, nobody knows
FULL = "，。：；！？、）》」』"
OPEN = "（《「『"


def glossary(lesson: Lesson) -> list[str]:
    """Both languages use the course's terms, and the same ones."""
    complaints = []
    for cells in lesson.pairs():
        zh, en = (take_apart(cell.source).words for cell in cells)
        complaints += [f"{named(cells[0])}: {fault}" for fault in wrong_words(zh, "zh")]
        complaints += [f"{named(cells[1])}: {fault}" for fault in wrong_words(en, "en")]
        complaints += [f"{named(cells[0])}: {fault}" for fault in missing_terms(zh, en)]
    return complaints


def chinese_typography(lesson: Lesson) -> list[str]:
    """Full-width punctuation, and a space between Han and Latin; in prose, headings and code."""
    complaints = []
    for cell in lesson.cells:
        if cell.cell_type == "code":
            texts = chinese_strings(cell.source)
        elif prose_language(cell) == "zh":
            texts = [take_apart(cell.source).words]
        else:
            texts = [line.partition(" · ")[0] for line in headings(cell.source)]
        complaints += [f"{named(cell)}: {fault}" for text in texts for fault in misprints(text)]
    return complaints


def misprints(chinese: str) -> list[str]:
    """Places where Chinese text breaks the course's typography."""
    return [
        f"{what}: {chinese[max(0, at.start() - 6) : at.end() + 6]!r}"
        for what, pattern in MISPRINTS.items()
        for at in re.finditer(pattern, chinese)
    ]


MISPRINTS = {
    "no space between Han and Latin": rf"{HAN}(?={LATIN})|[A-Za-z0-9%{TOKEN}](?={HAN})",
    "half-width punctuation": (
        rf"{HAN}[,;:!?](?!\w+:)|{HAN}\.(?![A-Za-z0-9_.])"
        rf"|[,;!?] *(?={HAN})|(?<=[\w{TOKEN}]): *(?={HAN})"
    ),
    # (batch, width) is a shape.
    "half-width parentheses": rf"{HAN} ?\((?!\w+(?:, \w+)+\))[^()\n]*\)|\([^()\n]*{HAN}[^()\n]*\)",
    "straight quotation marks": rf'{HAN}"|"(?={HAN})',
    "three dots": rf"{HAN}\.\.\.",
    "a space beside full-width punctuation": (
        rf"(?!。 [A-Z])[{FULL}{OPEN}] +(?=[^\s|])"  # 。 T is where a message turns to English
        rf"|(?<=[^\s|>*-]) +[{FULL}]|(?<=[\w%{TOKEN}]) +[{OPEN}]"
    ),
    "two spaces": rf"{HAN}  +\S|\S  +(?={HAN})",
}


def chinese_strings(code: str) -> list[str]:
    """String literals of Python code that hold Chinese; values of an f-string become UNKNOWN."""
    source = re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.M)
    found, inside = [], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node) if part is not node}
            found.append("".join(getattr(part, "value", None) if isinstance(part, ast.Constant)
                                 else UNKNOWN for part in node.values))  # fmt: skip
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            found.append(node.value)
    return [take_apart(text).words for text in found if re.search(HAN, text)]


def english_typography(lesson: Lesson) -> list[str]:
    """English prose has no full-width punctuation, and Chinese only in brackets or quotation."""
    complaints = []
    for cell in lesson.cells:
        if prose_language(cell) != "en":
            continue
        words = take_apart(cell.source).words
        complaints += [
            f"{named(cell)}: full-width {found}"
            for found in set(re.findall(f"[{FULL}{OPEN}]", words))
        ]
        words = re.sub(r"\([^()]*\)|“[^”]*”|\"[^\"]*\"", "", words)
        complaints += [f"{named(cell)}: Chinese: {h}" for h in re.findall(f"{HAN}+", words)]
    return complaints


def markup_closes(lesson: Lesson) -> list[str]:
    """HTML and bold type in prose are closed, and a folded part begins with a blank line."""
    complaints = []
    for cell in lesson.cells:
        if cell.cell_type != "markdown":
            continue
        rest = FENCE.sub("", cell.source)
        for name in ("details", "summary", "b", "i", "span", "table", "div"):
            opened, closed = (len(re.findall(rf"<{p}{name}\b", rest)) for p in ("", "/"))
            if opened != closed:
                complaints.append(f"{named(cell)}: {opened} <{name}>, {closed} </{name}>")
        # Markdown takes `**：**字` for an opening mark: put the punctuation outside.
        for bold in re.findall(rf"\*\*[^*\n]*[{FULL}”]\*\*(?=\w)", rest):
            complaints.append(f"{named(cell)}: bold that does not close: {bold}")
        for glued in re.findall(r"</summary>\n?[ \t]*[^\s<][^\n]*", cell.source):
            complaints.append(f"{named(cell)}: no blank line after {TAG.sub('', glued)[:30]!r}")
    return complaints


RULES: tuple[Rule, ...] = (
    known_tags,
    bilingual_headings,
    paired_prose,
    same_in_both_languages,
    anatomy,
    narrow_code,
    short_code,
    no_raw_results,
    links_resolve,
    clean_run,
    lean_file,
    widgets_have_a_picture,
    no_absolute_paths,
    no_javascript,
    glossary,
    chinese_typography,
    english_typography,
    markup_closes,
)
