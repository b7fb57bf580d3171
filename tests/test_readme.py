"""What the README and the other pages say of the course is so, and their links lead somewhere."""

import re
import tomllib

import pytest
import yaml
from PIL import Image, ImageChops, ImageStat

from course_lib.language import choose, language
from course_lib.notebook import player
from course_lib.site.contents import GLOSSARY, LESSONS, REPOSITORY, edition_of
from support import notebook_rules as rules
from support.notebooks import FENCE, FOLDER, ROOT, Lesson, lessons, take_apart
from tools import readme, record_block

README = readme.README.read_text(encoding="utf-8")
TOP, CHINESE, ENGLISH = re.split(r"^## (?:中文|English)$", README, flags=re.M)
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "edition" for part in path.relative_to(ROOT).parts)
)
PICTURES = ("slider.gif", "player.gif", "block.gif")


def test_the_two_commands_stand_at_the_top():
    assert "python course.py " in TOP
    assert "python course.py test" in TOP


def test_both_languages_list_every_lesson_with_its_minutes():
    for lesson in LESSONS:
        if not lesson.exists:
            continue
        for part, name, able in (
            (CHINESE, lesson.zh, lesson.able[0]),
            (ENGLISH, lesson.en, lesson.able[1]),
        ):
            row = f"| {lesson.number} | [{name}](notebooks/{lesson.name}.ipynb) | {able} | "
            assert f"{row}{lesson.minutes} |" in part
    for part in (CHINESE, ENGLISH):
        assert f"(notebooks/{GLOSSARY.name}.ipynb)" in part


def test_the_two_languages_have_the_same_structure():
    assert len(re.findall("^### ", CHINESE, re.M)) == len(re.findall("^### ", ENGLISH, re.M)) > 6
    zh, en = take_apart(CHINESE), take_apart(ENGLISH)
    assert zh.links == en.links
    assert zh.shape == en.shape
    assert [re.sub("#.*", "", block) for block in zh.blocks] == [
        re.sub("#.*", "", block) for block in en.blocks
    ]


def test_words_and_typography_are_those_of_the_lessons():
    zh, en = take_apart(CHINESE).words, take_apart(ENGLISH).words
    assert rules.misprints(zh) + rules.wrong_words(zh, "zh") + rules.wrong_words(en, "en") == []
    assert rules.missing_terms(zh, en) == []


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_move_and_are_small(name):
    assert re.search(rf"!\[[^\]]*{rules.HAN}[^\]]* · [^\]]+\]\(assets/{name}\)", TOP)
    file = ROOT / "assets" / name
    assert file.stat().st_size < 1_000_000
    with Image.open(file) as picture:
        assert picture.n_frames > 20


def test_the_slider_is_filmed_as_the_lesson_shows_it_now():
    with Image.open(ROOT / "assets" / "slider.gif") as film:
        said = film.info.get("comment", b"").decode()
    again = "python tools/record.py assets/slider.gif"
    assert said == readme.filmed(lessons()[0]), f"lesson 00's picture has changed; run: {again}"


@pytest.mark.parametrize(
    ("name", "export", "again"),
    [
        (
            "player.gif",
            player.export,
            "COURSE_LANG=both python -m course_lib.notebook.player assets/player.gif",
        ),
        ("block.gif", record_block.export, "python tools/record_block.py assets/block.gif"),
    ],
)
def test_it_is_filmed_as_it_is_drawn_now(name, export, again, tmp_path):
    before = language()
    choose("both")
    try:
        export(tmp_path / name)
    finally:
        choose(before)
    stored, now = (Image.open(f / name) for f in (ROOT / "assets", tmp_path))
    with stored, now:
        assert stored.n_frames == now.n_frames
        for frame in range(now.n_frames):
            stored.seek(frame)
            now.seek(frame)
            apart = ImageChops.difference(stored.convert("RGB"), now.convert("RGB"))
            worst = max(ImageStat.Stat(apart).mean)  # of 255 levels; a letter more makes 0.008
            assert worst < 0.005, f"run: {again}"


def test_figures_of_other_tools_are_those_of_the_stored_benchmarks():
    benchmarks = readme.BENCHMARKS.read_text(encoding="utf-8")
    assert readme.with_figures(README, benchmarks) == README, "run: python course.py dev readme"


@pytest.mark.parametrize("words", readme.PLANNING)
def test_a_row_for_each_tool_that_plans(words):
    (rows,) = readme.tables(readme.planned(words, readme.BENCHMARKS.read_text(encoding="utf-8")))
    _, _, error, _, on_a_decoder, _ = readme.PLANNING[words][1]
    assert len({next(iter(row.values())) for row in rows}) == len(readme.ANSWERS)
    for row in rows:
        for cell in (row[error], row[on_a_decoder]):
            assert re.fullmatch(r"0|[+-][\d,]+|✗ `\w+`", cell), cell
    assert readme.planned(words, "") == ""


# Links


def slug(heading: str) -> str:
    """What GitHub calls a heading of a Markdown page in addresses."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path) -> set[str]:
    if path.suffix == ".ipynb":
        return rules.anchors(Lesson(path))
    lines = FENCE.sub("", path.read_text(encoding="utf-8")).splitlines()
    return {slug(line.lstrip("#")) for line in lines if re.match("#{1,6} ", line)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page):
    for link in take_apart(page.read_text(encoding="utf-8")).links:
        if re.match(r"https://[\w.-]+/", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_is_there(page):
    path = r"(?<![\w./-])(?:assets|course_lib|notebooks|tests|tools)/[\w./-]+\.\w+"
    named = set(re.findall(path, page.read_text(encoding="utf-8"))) - {"notebooks/NN_name.ipynb"}
    assert [file for file in sorted(named) if not (ROOT / file).exists()] == []


def test_the_pages_that_a_reader_needs_are_among_those_with_links():
    assert {"README.md", "CONTRIBUTING.md", "assets/benchmarks.md"} <= {
        page.relative_to(ROOT).as_posix() for page in PAGES
    }


# Where the course is published


def test_one_address_in_every_file():
    files = [readme.README, ROOT / "CITATION.cff", *sorted(FOLDER.glob("[0-9]*.ipynb"))]
    for file in files:
        text = file.read_text(encoding="utf-8")
        found = re.findall(
            r"(?:colab\.research\.google\.com/github|mybinder\.org/v2/gh)/([\w.-]+/[\w.-]+)/"
            r"|(?:repository-code: |\{fetch\} )https://github\.com/([\w.-]+/[\w.-]+)", text
        )  # fmt: skip
        found = [one or other for one, other in found]
        assert set(found) == {REPOSITORY}, file.name


def test_each_lessons_head_leads_to_its_page_of_the_web_edition():
    for lesson in lessons():
        head = next(iter(lesson.pairs()))
        for spoken, cell in zip(("zh", "en"), head, strict=True):
            assert f"({edition_of()}/{spoken}/{lesson}.html)" in cell.source
    assert README.count(f"({edition_of()}/)") == 2


def test_badges_open_the_lessons():
    for lesson in LESSONS:
        if lesson.exists:
            colab = f"{REPOSITORY}/blob/HEAD/notebooks/{lesson.name}.ipynb"
            assert f"https://colab.research.google.com/github/{colab}" in README
    first = f"{REPOSITORY}/HEAD?labpath=notebooks/{LESSONS[0].name}.ipynb"
    assert f"https://mybinder.org/v2/gh/{first}" in TOP


def test_binder_installs_what_everyone_has_on_the_python_that_is_tested():
    lines = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["-r ../requirements.txt"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python = (ROOT / "binder" / "runtime.txt").read_text(encoding="utf-8").strip()
    assert python == project["requires-python"].replace(">=", "python-")


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
