"""Outside JupyterLab: on GitHub, in VS Code, on Colab.

There no style sheet of JupyterLab's classes applies and, on GitHub, no widget runs. On Colab the
first cell of a lesson fetches the rest of the course; elsewhere it fetches nothing.
"""

import re
import shutil
import subprocess

import nbformat
import pytest

from course_lib.language import Table
from course_lib.notebook.switch import Switch
from course_lib.site import colab
from course_lib.site.contents import LESSONS, REPOSITORY
from course_lib.site.setting import Place, set_page
from support.notebooks import FOLDER, ROOT, Lesson, kernel, lessons, markdown, named, python, tags

ADDRESS = f"https://github.com/{REPOSITORY}"
FETCHING = re.compile(r"import sys\n\nif .*?\n\n", re.S)
ON_COLAB = """\
import sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
for name in [name for name in sys.modules if name.partition(".")[0] == "course_lib"]:
    del sys.modules[name]  # kernels of the course's own environment load it as they start
"""
WHERE = "import course_lib, os; print(course_lib.__file__); print(os.getcwd())"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_nothing_that_is_stored_is_hidden(path):
    """Both languages can be read, prose and outputs, whatever opens the file."""
    for cell in Lesson(path).cells:
        written = [cell.source if cell.cell_type == "markdown" else ""]
        written += [o.get("data", {}).get("text/html", "") for o in cell.get("outputs", [])]
        hidden = re.findall(r"<style|display: ?none|visibility: ?hidden|jp-", "\n".join(written))
        assert hidden == [], named(cell)


def test_the_switch_hides_only_what_jupyter_draws_in_a_lesson_that_has_it():
    rules = re.findall(r"^([^{}/]+) \{ display: none; \}$", Switch._css, re.M)
    hiding = [rule.strip() for rule in rules if re.search("lang=|between", rule)]
    assert len(hiding) == 6
    assert all(re.match(r"\[data-course-language=\"(zh|en)\"\] \.jp-", rule) for rule in hiding)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [("zh", ["包", "MiB", "甲", "1"]), ("en", ["package", "MiB", "A", "1"])],
)
def test_web_pages_keep_languages_apart(chosen, words):
    cell = python("table")
    table = Table([("包", "package"), ("MiB", "MiB")], [[("甲", "A"), 1]])
    cell.outputs = [nbformat.v4.new_output("display_data", table._repr_mimebundle_())]
    notebook = nbformat.v4.new_notebook(cells=[markdown("# 题 · Title"), cell])
    others = [language for language in ("zh", "en") if language != chosen]
    page, _, _ = set_page(notebook, {}, Place(LESSONS[0], chosen, others, None, None))
    assert re.sub("<[^>]*>", " ", re.search("<table.*</table>", page, re.S)[0]).split() == words


def setup_cell(lesson):
    return next(cell for cell in lesson.code if "setup" in tags(cell))


def test_every_lesson_begins_with_the_same_lines_and_fetches_from_the_same_address():
    beginnings = {FETCHING.match(setup_cell(lesson).source)[0] for lesson in lessons()}
    assert len(beginnings) == 1
    assert ADDRESS in beginnings.pop()


@pytest.fixture
def published(tmp_path):
    """A repository with what is checked out here, for the first cell to clone."""
    repository = tmp_path / "published"
    for name in ("course_lib", "notebooks", "assets"):
        shutil.copytree(
            ROOT / name, repository / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "requirements.txt", repository)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(repository)]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True)
    return repository


@pytest.mark.slow
def test_on_colab_the_first_cell_fetches_the_course_once(published, tmp_path):
    """Only the name of Colab's module is made up; git, the kernel and the cell are real."""
    cell = setup_cell(lessons()[0])
    cell = python(cell.source.replace(ADDRESS, published.as_uri()))
    folder = tmp_path / "content"
    folder.mkdir()
    with kernel("en", tmp_path, folder) as live:
        assert live.run_code(ON_COLAB).error is None
        for _ in range(2):
            ran = live.run(cell)
            assert ran.error is None and ran.stderr == ""
            file, there = live.run_code(WHERE).texts[0].split()
            assert file == str(folder / "course" / "course_lib" / "__init__.py")
            assert there == str(folder / "course" / "notebooks")
        assert [path.name for path in folder.iterdir()] == ["course"]
        assert not (folder / "course" / "notebooks" / "course").exists()


@pytest.mark.slow
def test_elsewhere_it_fetches_nothing(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with kernel("en", tmp_path, folder) as live:
        ran = live.run(setup_cell(lessons()[0]))
        assert ran.error is None and ran.stderr == ""
        assert live.run_code(WHERE).texts[0].split()[1] == str(folder)
    assert list(folder.iterdir()) == []


def test_only_what_is_absent_is_installed_and_in_the_version_of_the_course(tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(
        "# none of these\nno-such-package[extra]==1.0  # why\nnumpy==0.1\njupyterlab==4\n-e .\n"
    )
    assert colab.missing(requirements) == ["no-such-package[extra]==1.0"]
    assert colab.missing(ROOT / "requirements.txt") == []


def test_a_failed_installation_stops_the_cell(tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("no-such-package==1.0\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(subprocess.CalledProcessError):
        colab.prepare(tmp_path)
