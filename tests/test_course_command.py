"""`course.py` and `tools/refresh.py`, run for real: environments, pip, Jupyter, kernels."""

import ast
import collections
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import nbformat
import psutil
import pytest

import course

ROOT = Path(course.__file__).parent
REFRESH = ROOT / "tools" / "refresh.py"
POSIX = os.name == "posix"


def both_languages(message: str) -> bool:
    return bool(re.search(r"[\u4e00-\u9fff]", message) and re.search(r"[a-z]{4}", message))


def stopped(callable_, *arguments) -> str:
    with pytest.raises(course.Stop) as caught:
        callable_(*arguments)
    return "\n".join(caught.value.args)


# Python


def test_an_old_python_can_parse_course_py():
    ast.parse((ROOT / "course.py").read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize("version", [(3, 6, 9), (3, 10, 12, "final", 0)])
def test_an_old_python_is_turned_away_with_one_sentence(version):
    message = stopped(course.check_python, version)
    assert both_languages(message)
    assert ".".join(map(str, version[:3])) in message and "3.11" in message


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 14, 1), (4, 0, 0)])
def test_a_new_enough_python_passes(version):
    course.check_python(version)


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_a_missing_module_is_answered_with_the_debian_fix(missing):
    message = stopped(course.check_venv_module, lambda name: None if name == missing else name)
    assert both_languages(message) and missing in message
    assert message.count("sudo apt install python3-venv") == 2
    course.check_venv_module()


# Requirements


def test_requirements_are_pinned_and_agree_with_pyproject():
    def lines(name):
        text = (ROOT / name).read_text(encoding="utf-8")
        return [line for line in text.splitlines() if line and line[0] not in "#-"]

    pinned = [line for name in ("", "-test", "-dev") for line in lines(f"requirements{name}.txt")]
    assert all(re.fullmatch(r"[\w-]+(\[\w+\])?==[\d.]+(post\d+)?", line) for line in pinned)
    assert len({re.split(r"[\[=]", line)[0] for line in pinned}) == len(pinned), "pinned twice"
    assert "-e ." in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    assert set(wanted) <= set(lines("requirements.txt"))


def test_jupyterlab_saves_what_widgets_show(tmp_path):
    course.set_up_jupyterlab(tmp_path, "zh")
    defaults = json.loads((tmp_path / "overrides.json").read_text(encoding="utf-8"))
    assert defaults["@jupyter-widgets/jupyterlab-manager:plugin"] == {"saveState": True}
    assert defaults["@jupyterlab/translation-extension:plugin"] == {"locale": "zh_CN"}


# The environment, made and mended


def make_wheel(folder: Path, files: int = 3) -> None:
    """A package `tiny` 1.0 whose files lie partly in site-packages, partly in share/."""
    folder.mkdir()
    info = "tiny-1.0.dist-info"
    contents = {f"tiny/part{i}.py": f"number = {i}\n" for i in range(files)} | {
        "tiny/__init__.py": "",
        "tiny-1.0.data/data/share/tiny/page.html": "<p>tiny</p>",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*contents, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in contents.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", record)


TINY = "--no-index\n--find-links wheels\ntiny==1.0\n"


@pytest.fixture(scope="module")
def small_course(tmp_path_factory) -> Path:
    """A course, in a folder with a space and Chinese in its name, that needs only `tiny`."""
    root = tmp_path_factory.mktemp("小 course")
    make_wheel(root / "wheels")
    (root / "course.py").write_bytes((ROOT / "course.py").read_bytes())
    (root / "requirements.txt").write_text(TINY, encoding="utf-8")
    (root / "notebooks").mkdir()
    (root / "notebooks" / "00_start_here.ipynb").write_text("{}", encoding="utf-8")
    course.prepare(root)
    return root


def import_tiny(root: Path) -> int:
    command = [str(course.python_of(root)), "-c", "import tiny.part2"]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode


def test_the_first_run_installs_and_the_second_only_looks(small_course, capfd):
    assert import_tiny(small_course) == 0
    capfd.readouterr()
    started = time.perf_counter()
    course.prepare(small_course)
    assert time.perf_counter() - started < 1
    assert capfd.readouterr().out == ""


def test_the_environment_is_set_up(small_course):
    for name, settings in course.SETTINGS.items():
        written = (small_course / ".venv" / name).read_text(encoding="utf-8")
        assert json.loads(written) == settings


def test_changed_settings_are_written_again(small_course, monkeypatch):
    monkeypatch.setattr(course, "SETTINGS", course.SETTINGS | {"etc/new.json": {"new": 1}})
    course.prepare(small_course)
    assert (small_course / ".venv" / "etc" / "new.json").exists()
    monkeypatch.undo()
    course.prepare(small_course)


def test_changed_requirements_are_installed(small_course, capfd):
    requirements = small_course / "requirements.txt"
    requirements.write_text(TINY + "# changed\n", encoding="utf-8")
    course.prepare(small_course)
    assert "already satisfied: tiny" in capfd.readouterr().out
    course.prepare(small_course)
    assert capfd.readouterr().out == ""


def test_a_new_pyproject_python_or_folder_is_installed_again(tmp_path):
    (tmp_path / "requirements.txt").write_text("tiny\n", encoding="utf-8")
    before = course.fingerprint(tmp_path, "requirements.txt", (3, 11, 2))
    assert before == course.fingerprint(tmp_path, "requirements.txt", [3, 11, 2])
    assert before != course.fingerprint(tmp_path, "requirements.txt", (3, 12, 0))
    assert before != course.fingerprint(tmp_path / "..", "requirements.txt", (3, 11, 2))
    (tmp_path / "pyproject.toml").write_text("", encoding="utf-8")
    assert before == course.fingerprint(tmp_path, "requirements.txt", (3, 11, 2))
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    assert before != course.fingerprint(tmp_path, "requirements.txt", (3, 11, 2))


def test_a_failed_install_leaves_no_stamp_and_is_mended_by_the_next_run(small_course, capfd):
    requirements = small_course / "requirements.txt"
    requirements.write_text(TINY + "no-such-package==1\n", encoding="utf-8")
    message = stopped(course.prepare, small_course)
    assert both_languages(message)
    assert not course.stamp_of(small_course).exists()
    assert "no-such-package" in capfd.readouterr().err
    requirements.write_text(TINY, encoding="utf-8")
    course.prepare(small_course)
    assert course.stamp_of(small_course).exists()


def test_a_package_cut_short_by_an_interruption_is_installed_again(small_course):
    """The state in which a killed pip leaves a package: METADATA, but neither all files nor
    INSTALLER; pip by itself would call the requirement satisfied."""
    packages = course.inspect_environment(small_course)["packages"]
    page = small_course / ".venv" / "share" / "tiny" / "page.html"
    for part in (packages / "tiny-1.0.dist-info" / "INSTALLER", packages / "tiny/part2.py", page):
        part.unlink()
    (packages / "~iny").mkdir()
    course.stamp_of(small_course).unlink()
    course.prepare(small_course)
    assert import_tiny(small_course) == 0 and page.exists()
    assert not (packages / "~iny").exists()


# PyTorch without CUDA


def make_torch(folder: Path, version: str, needs: str = "", build: str = "") -> Path:
    """A wheel that is PyTorch in name only; `build` is what it says it was built for."""
    return make_package(
        folder, "torch", version, {"torch/__init__.py": f"cuda = {build!r}\n"}, needs
    )


def make_package(folder: Path, name: str, version: str, files: dict, needs: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents = files | {
        f"{info}/METADATA": metadata + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in contents.items():
            wheel.writestr(file, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*contents, info]))
    return path


@pytest.fixture
def torch_course(tmp_path, monkeypatch) -> Path:
    """A course that needs PyTorch: by default with a CUDA package; in `cpu/` is an index without.

    pip is asked nothing but that: neither this machine's settings nor the network.
    """
    for name in list(os.environ):
        if name.startswith("PIP_") or name == course.TORCH_INDEX:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    root = tmp_path / "course"
    make_torch(root / "wheels", "2.13.0", "nvidia-tiny==1.0", build="13.0")
    make_package(root / "wheels", "nvidia_tiny", "1.0", {"nvidia_tiny.py": ""})
    wheel = make_torch(tmp_path / "cpu" / "torch", "2.13.0+cpu")
    link = f'<a href="{wheel.name.replace("+", "%2B")}">{wheel.name}</a>'
    (wheel.parent / "index.html").write_text(f"<!DOCTYPE html><body>{link}", encoding="utf-8")
    (root / "course.py").write_bytes((ROOT / "course.py").read_bytes())
    pins = "--no-index\n--find-links wheels\ntorch==2.13.0\n"
    (root / "requirements.txt").write_text(pins, encoding="utf-8")
    return root


def torch_in(root: Path) -> tuple[str, bool]:
    """What PyTorch in the environment was built for, and whether a CUDA package is there."""
    question = (
        "import importlib.util, torch;"
        "print((torch.cuda, importlib.util.find_spec('nvidia_tiny') is not None))"
    )
    command = [str(course.python_of(root)), "-c", question]
    return ast.literal_eval(
        subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()
    )


ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere no CUDA")


@ON_LINUX
@pytest.mark.parametrize("told", ["as an option", "as a variable", "by pip's own settings"])
def test_pytorch_without_cuda_is_installed_and_remembered(torch_course, told, monkeypatch, capfd):
    index = (torch_course.parent / "cpu").as_uri()
    arguments = ["--cpu", index, "1"]
    if told == "as a variable":
        monkeypatch.setenv(course.TORCH_INDEX, index)
        arguments = ["1", "--cpu"]
    elif told == "by pip's own settings":
        monkeypatch.setenv("PIP_INDEX_URL", index)
        arguments = ["--cpu", "1"]
    rest, cpu = course.take_build(arguments)
    assert rest == ["1"]
    course.prepare(torch_course, cpu=cpu)
    assert torch_in(torch_course) == ("", False)
    assert "NVIDIA" not in capfd.readouterr().out
    course.prepare(torch_course)
    assert capfd.readouterr().out == "", "remembered: nothing to install"

    for name in ("PIP_INDEX_URL", course.TORCH_INDEX):
        monkeypatch.delenv(name, raising=False)
    with (torch_course / "requirements.txt").open("a") as requirements:
        requirements.write("# changed\n")
    course.prepare(torch_course)
    assert torch_in(torch_course) == ("", False), "other requirements keep it"
    if told == "as an option":
        (torch_course / ".venv" / "pyvenv.cfg").unlink()  # broken: made again
        course.prepare(torch_course)
        assert torch_in(torch_course) == ("", False)


@ON_LINUX
def test_an_environment_with_cuda_gives_its_space_back(torch_course, capfd):
    course.prepare(torch_course)
    assert torch_in(torch_course) == ("13.0", True)
    card = shutil.which("nvidia-smi") or any(Path("/dev").glob("nvidia*"))
    is_said = not card and platform.machine() == "x86_64"
    assert ("No NVIDIA card is seen here" in capfd.readouterr().out) == is_said
    course.prepare(torch_course, cpu=(torch_course.parent / "cpu").as_uri())
    assert torch_in(torch_course) == ("", False)
    course.prepare(torch_course, cpu=(torch_course.parent / "cpu").as_uri())
    assert capfd.readouterr().out.count("Installed.") == 1


@ON_LINUX
def test_where_to_find_it_is_said_when_it_cannot_be_installed(torch_course):
    message = stopped(lambda: course.prepare(torch_course, cpu=torch_course.as_uri()))
    assert both_languages(message) and message.count(course.SELECTOR) == 2
    assert "torch==2.13.0+cpu" in message and "--cpu ADDRESS" in message
    assert not course.stamp_of(torch_course).exists()


@ON_LINUX
def test_what_cuda_would_cost_is_said_where_no_card_is_seen(torch_course):
    packages = torch_course / "packages"
    packages.mkdir()
    said = course.torch_would_bring_cuda_in_vain
    learner = (course.LEARNER,)
    assert said(torch_course, learner, packages, card=False) == (platform.machine() == "x86_64")
    assert not said(torch_course, learner, packages, card=True)
    (packages / "torch-2.13.0.dist-info").mkdir()
    assert not said(torch_course, learner, packages, card=False), "it is there already"


def test_the_readme_says_what_it_saves():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for words in (course.WITH_CUDA, course.WITHOUT_CUDA, "python course.py --cpu", course.SELECTOR):
        assert readme.count(words) >= 2, words


def test_options_of_other_programs_are_theirs():
    assert course.take_build(["lab", "--", "--cpu"]) == (["lab", "--", "--cpu"], None)
    assert course.take_build(["test", "-k", "cpu"]) == (["test", "-k", "cpu"], None)
    assert course.take_build(["--cpu=file:///x", "--no-browser"]) == (["--no-browser"], "file:///x")


def test_two_at_once_install_only_once(small_course):
    course.stamp_of(small_course).unlink()
    command = [sys.executable, "-c", "import course, pathlib; course.prepare(pathlib.Path('.'))"]
    runs = [subprocess.Popen(command, cwd=small_course, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [run.communicate(timeout=60)[0].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum("Installed." in output for output in outputs) == 1, outputs


@pytest.mark.skipif(not POSIX, reason="sends POSIX signals")
def test_an_interrupted_or_broken_environment_is_made_again(tmp_path, small_course):
    """Ctrl-C while `.venv` is being made: no traceback, and the next run starts over."""
    (tmp_path / "course.py").write_bytes((ROOT / "course.py").read_bytes())
    (tmp_path / "requirements.txt").write_text("", encoding="utf-8")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_start_here.ipynb").write_text("{}", encoding="utf-8")
    run = subprocess.Popen(
        [sys.executable, "course.py", "--no-browser"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        # tests in the background ignore Ctrl-C, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not course.python_of(tmp_path).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # now ensurepip is at work
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, (out, err)
    assert b"Traceback" not in out + err
    assert "Interrupted." in err.decode()
    assert not course.stamp_of(tmp_path).exists()

    assert course.inspect_environment(tmp_path) is None
    course.prepare(tmp_path)
    assert course.stamp_of(tmp_path).exists()

    # A Python that was uninstalled leaves a dead link.
    course.python_of(tmp_path).unlink()
    course.python_of(tmp_path).symlink_to(tmp_path / "gone")
    assert course.inspect_environment(tmp_path) is None


# Lessons


@pytest.fixture
def three_lessons(tmp_path) -> Path:
    (tmp_path / "notebooks").mkdir()
    for name in ("00_start_here", "01_activation_memory", "10_last", "scratch"):
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text("{}", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("0", "00_start_here"),
        ("00", "00_start_here"),
        ("1", "01_activation_memory"),
        ("01", "01_activation_memory"),
        ("01_activation_memory", "01_activation_memory"),
        ("01_Activation_Memory.ipynb", "01_activation_memory"),
        ("notebooks/01_activation_memory.ipynb", "01_activation_memory"),
        ("notebooks\\10_last.ipynb", "10_last"),
        ("10", "10_last"),
    ],
)
def test_a_lesson_has_many_names(three_lessons, name, stem):
    assert course.find_lesson(name, three_lessons).stem == stem


@pytest.mark.parametrize("name", ["7", "²", "activation", "", "..", "scratch"])
def test_an_unknown_lesson_is_answered_with_those_there_are(three_lessons, name):
    message = stopped(course.find_lesson, name, three_lessons)
    assert both_languages(message)
    assert message.count("00_start_here, 01_activation_memory, 10_last") == 2


def test_an_unknown_lesson_or_option_ends_at_once(small_course):
    for arguments in (["7"], ["lab", "7"], ["refresh", "7"], ["--port=1"], ["0", "1"]):
        started = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "course.py", *arguments], cwd=small_course, capture_output=True
        )
        assert run.returncode == 1 and run.stdout == b""
        assert both_languages(run.stderr.decode()) and b"Traceback" not in run.stderr
        assert time.perf_counter() - started < 1


def test_a_tool_gets_its_arguments_and_its_exit_code_counts(small_course):
    tools = small_course / "tools"
    tools.mkdir(parents=True)
    for name in ("requirements-test.txt", "requirements-dev.txt"):
        (small_course / name).write_text("", encoding="utf-8")
    (tools / "count.py").write_text(
        "import sys, tiny; print(sys.prefix, *sys.argv[1:]); sys.exit(len(sys.argv))"
    )
    command = [sys.executable, "course.py", "dev"]
    run = subprocess.run([*command, "count", "1", "--two"], cwd=small_course, capture_output=True)
    assert run.stdout.decode().splitlines()[-1] == f"{small_course / '.venv'} 1 --two"
    assert run.returncode == 3
    for unknown in ([], ["audit"]):
        run = subprocess.run([*command, *unknown], cwd=small_course, capture_output=True)
        assert run.returncode == 1 and run.stderr.count(b"count") == 2
        assert both_languages(run.stderr.decode())


def test_help_is_in_both_languages_whatever_the_console():
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = subprocess.run(
        [sys.executable, str(ROOT / "course.py"), "--help"], env=env, capture_output=True
    )
    assert run.returncode == 0 and b"open the course" in run.stdout


# JupyterLab


def test_the_kernel_is_the_environments_python_whatever_the_user_has(tmp_path):
    decoy = tmp_path / "kernels" / "python3"
    decoy.mkdir(parents=True)
    (decoy / "kernel.json").write_text(
        json.dumps({"argv": ["/nowhere/python"], "display_name": "decoy", "language": "python"})
    )
    question = (
        "from jupyter_client import KernelManager as K; k = K(kernel_name='python3');"
        "print(k.format_kernel_cmd()[0]); print(k.kernel_spec.resource_dir)"
    )
    env = course.environment(ROOT) | {"JUPYTER_DATA_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", question], env=env, capture_output=True, text=True)
    python, spec = run.stdout.splitlines()
    assert Path(python) == Path(sys.executable)
    assert Path(spec) == Path(sys.prefix) / "share" / "jupyter" / "kernels" / "python3"


def test_jupyterlab_listens_on_this_machine_only_with_a_token(three_lessons):
    lesson = course.find_lesson("1", three_lessons)
    command = course.lab_command(sys.executable, three_lessons, lesson, browser=False)
    assert ("--allow-root" in command) == (POSIX and os.geteuid() == 0)
    env = course.environment(ROOT)
    env.pop("JUPYTER_TOKEN", None)
    server = subprocess.Popen(
        command, cwd=three_lessons, env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in server.stderr:
            found = re.search(r"(http://127\.0\.0\.1:\d+)(/\S*)\?token=(\w{32,})", line)
            if found:
                break
        address, path, token = found.groups()
        assert path == "/lab/tree/notebooks/01_activation_memory.ipynb"
        for _ in range(50):  # the address is printed a moment before the server answers
            try:
                urllib.request.urlopen(f"{address}/api/contents", timeout=10)
                refusal = None
                break
            except urllib.error.HTTPError as error:
                refusal = error.code
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        assert refusal == 403
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}/api/contents?token={'0' * 48}", timeout=10)
        page = urllib.request.urlopen(f"{address}{path}", timeout=10)
        assert page.url.startswith(f"{address}/login?"), "the page itself asks for the token"
        there = urllib.request.urlopen(
            f"{address}/api/contents/notebooks?token={token}", timeout=10
        )
        assert lesson.name in [entry["name"] for entry in json.load(there)["content"]]
        listening = psutil.Process(server.pid).net_connections()
        hosts = {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN}
        assert hosts == {"127.0.0.1"}
    finally:
        server.kill()
        server.communicate(timeout=20)


def test_variables_that_course_py_sets(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("JUPYTER_TOKEN", "")
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    env = course.environment(ROOT)
    assert "PYTHONPATH" not in env and "JUPYTER_TOKEN" not in env
    assert env["KINETO_LOG_LEVEL"] == "99"
    assert env["PATH"].split(os.pathsep)[0] == str(course.python_of(ROOT).parent)
    monkeypatch.setenv("KINETO_LOG_LEVEL", "1")
    assert course.environment(ROOT)["KINETO_LOG_LEVEL"] == "1"


# Tests and refresh

Cell = collections.namedtuple("Cell", "source tags", defaults=[()])


def write_notebook(path: Path, *cells: str | Cell) -> dict:
    """An unexecuted notebook, with what JupyterLab would have left in its metadata."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata = {
        "kernelspec": {"name": "my-env", "display_name": "My env", "language": "python"},
        "language_info": {"name": "python", "version": "3.11.2", "pygments_lexer": "ipython3"},
        "widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}},
        "title": "kept",
    }
    for number, cell in enumerate(cells):
        cell = Cell(cell) if isinstance(cell, str) else cell
        made = nbformat.v4.new_code_cell(cell.source, id=f"cell-{number}", execution_count=40)
        made.metadata = {"tags": list(cell.tags), "execution": {"iopub.status.busy": "2020"}}
        notebook.cells.append(made)
    nbformat.write(notebook, path)
    return json.loads(path.read_text(encoding="utf-8"))


def run_refresh(*paths: Path) -> subprocess.CompletedProcess:
    env = course.strict_environment(ROOT)
    command = [sys.executable, str(REFRESH), *map(str, paths)]
    return subprocess.run(command, env=env, capture_output=True, encoding="utf-8")


def test_refresh_stores_outputs_and_nothing_that_changes_by_itself(tmp_path):
    path = tmp_path / "00_tiny.ipynb"
    write_notebook(
        path,
        "import os\nfrom pathlib import Path\nprint(Path.cwd().name, os.environ['COURSE_LANG'])",
        "",
        "from IPython.display import display\n"
        "view = 'application/vnd.jupyter.widget-view+json'\n"
        "display({view: {'model_id': 'x'}, 'text/plain': 'a slider'}, raw=True)",
        Cell("1 / 0", ("raises-exception",)),
        "'中文'",
    )
    run = run_refresh(path)
    assert run.returncode == 0, run.stdout + run.stderr
    first = path.read_bytes()
    stored = json.loads(first)
    assert stored["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "title": "kept",
    }
    cells = stored["cells"]
    assert [cell["id"] for cell in cells] == [f"cell-{i}" for i in range(5)]
    assert [cell["execution_count"] for cell in cells] == [1, None, 2, 3, 4]
    assert all("execution" not in cell["metadata"] for cell in cells)
    assert cells[0]["outputs"][0]["text"] == [f"{tmp_path.name} en\n"]
    assert cells[2]["outputs"][0]["data"] == {"text/plain": ["a slider"]}
    assert cells[3]["outputs"][0]["ename"] == "ZeroDivisionError"
    assert "中文" in first.decode() and first.endswith(b"}\n") and b"\r" not in first

    assert "unchanged" in run_refresh(path).stdout
    assert path.read_bytes() == first


def test_refresh_does_not_store_an_unclean_run_and_names_the_cell(tmp_path):
    failing, noisy, fine = (tmp_path / f"{name}.ipynb" for name in ("1_fails", "2_warns", "3_ok"))
    before = [
        write_notebook(failing, "x = 1", "# second\nx / 0"),
        write_notebook(noisy, "import warnings\nwarnings.warn('careful')"),
    ]
    write_notebook(fine, "2 + 2")
    run = run_refresh(failing, noisy, fine)
    assert run.returncode == 1
    assert "cell 1 (id cell-1, `# second`): ZeroDivisionError" in run.stdout
    assert "cell 0 (id cell-0, `import warnings`): wrote to stderr" in run.stdout
    assert "careful" in run.stdout
    assert before == [json.loads(p.read_text(encoding="utf-8")) for p in (failing, noisy)]
    output = json.loads(fine.read_text(encoding="utf-8"))["cells"][0]["outputs"][0]
    assert output["data"] == {"text/plain": ["4"]}


def test_refresh_gives_a_cell_without_an_id_the_same_one_each_time(tmp_path):
    path = tmp_path / "00_no_ids.ipynb"
    ids = []
    for _ in range(2):
        notebook = write_notebook(path, "1", "1")
        for cell in notebook["cells"]:
            del cell["id"]
        path.write_text(json.dumps(notebook | {"nbformat_minor": 4}), encoding="utf-8")
        assert run_refresh(path).returncode == 0
        stored = nbformat.read(path, as_version=4)
        nbformat.validate(stored)
        ids.append([cell.id for cell in stored.cells])
    assert ids[0] == ids[1] and len(set(ids[0])) == 2


@pytest.mark.parametrize(
    "arguments",
    [[], ["--lang"], ["--lang", "fr"], ["zh"], ["--to", "x"], ["--lang", "zh", "--form", "pdf"]],
)
def test_an_export_in_no_language_says_how_to_ask(arguments):
    message = stopped(course.export, arguments)
    assert both_languages(message) and message.count("--lang zh|en|both") == 2
