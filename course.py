#!/usr/bin/env python3
"""Set the course up and open it; the standard library is all this file needs.

    python course.py [lab] [LESSON] [--no-browser] [--cpu [ADDRESS]] [-- JUPYTERLAB OPTIONS]
    python course.py test [PYTEST ARGUMENTS]
    python course.py refresh [LESSON ...]
    python course.py export --lang zh|en|both [--to FOLDER]
    python course.py benchmark [PART ...]
    python course.py dev TOOL [ARGUMENTS]

The first run makes `.venv` and installs `requirements.txt` into it; later runs start at once.
This file keeps to the syntax of Python 3.6, so that an old Python can still read the sentence
that turns it away.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST_PYTHON = (3, 11)
LEARNER, TESTS, TOOLS = "requirements.txt", "requirements-test.txt", "requirements-dev.txt"
# Linux's default PyTorch brings the libraries of NVIDIA's cards: measured with Python 3.13, .venv
# takes 5.1 GB with them and 1.7 GB without.
WITH_CUDA, WITHOUT_CUDA = "5.1 GB", "1.7 GB"
# Where the build without them is published is for whoever installs to say, with --cpu or here; the
# page that tells it is SELECTOR. An address written down here would age with PyTorch's folders and
# would pass over the mirror, or the folder, that a school or a company has of its own.
TORCH_INDEX = "COURSE_TORCH_INDEX"
SELECTOR = "https://pytorch.org/get-started/locally/"
WINDOWS = os.name == "nt"
# Files in .venv that set its programs up.
SETTINGS = {
    # A kernel that was just restarted already says which cell to run first.
    "etc/ipython/ipython_kernel_config.json": {
        "InteractiveShellApp": {"extensions": ["course_lib.notebook.missing_names"]}
    },
}

USAGE_ZH = """\
python course.py [lab] [LESSON] [--no-browser] [-- …]
    打开课程；LESSON 是 1、01 或文件名，默认 00；-- 之后的选项交给 JupyterLab
python course.py --cpu [ADDRESS] …
    （Linux）装不带 CUDA 的 PyTorch，从此记住：.venv 是 1.7 GB，不是 5.1 GB；
    ADDRESS 在 https://pytorch.org/get-started/locally/ 上选 CPU 之后给出，也可以写在
    环境变量 COURSE_TORCH_INDEX 里；pip 自己找得到时不用给
python course.py test [pytest …]
    安装测试工具并运行全部测试；给出 pytest 参数，就只运行选中的测试
python course.py refresh [LESSON …]
    从头到尾重新运行课程的 notebook，并保存输出
python course.py export --lang zh|en|both [--to FOLDER]
    把课程写成网页，只用一种语言或两种都用；默认放在 edition/
python course.py benchmark [PART …]
    重新测量 assets/benchmarks.md 里的基准；给出名字，就只测那几部分
python course.py dev TOOL […]
    维护课程的工具，见 CONTRIBUTING.md
"""
USAGE_EN = """\
python course.py [lab] [LESSON] [--no-browser] [-- …]
    open the course; LESSON is 1, 01 or a file name, 00 by default;
    options after -- go to JupyterLab
python course.py --cpu [ADDRESS] …
    (Linux) install PyTorch without CUDA, and remember it: .venv takes 1.7 GB, not 5.1 GB;
    https://pytorch.org/get-started/locally/ tells ADDRESS once you choose CPU there; the variable
    COURSE_TORCH_INDEX may hold it instead, and pip may know it by itself
python course.py test [pytest …]
    install the test tools and run every test, or only those that pytest arguments select
python course.py refresh [LESSON …]
    rerun the lessons from top to bottom and store their outputs
python course.py export --lang zh|en|both [--to FOLDER]
    write the course as web pages in one language or in both; to edition/ by default
python course.py benchmark [PART …]
    measure the benchmarks in assets/benchmarks.md again, all or the parts named
python course.py dev TOOL […]
    tools for whoever works on the course, see CONTRIBUTING.md"""


class Stop(Exception):
    """Ends the program with one sentence, in both languages, and no traceback."""

    def __init__(self, zh, en):
        super().__init__(zh, en)


def say(zh, en, stream=None):
    """Print both at once, on one line where they fit.

    A console that cannot show Chinese gets question marks, not an error.
    """
    stream = stream or sys.stdout
    words = "{} / {}".format(zh, en) if 2 * len(zh) + len(en) < 90 else "{}\n{}".format(zh, en)
    encoding = getattr(stream, "encoding", None) or "ascii"
    print(words.encode(encoding, "replace").decode(encoding), file=stream, flush=True)


# The environment


def check_python(version):
    """Raise `Stop` where `version`, such as `sys.version_info`, is older than the course needs."""
    if tuple(version[:2]) < OLDEST_PYTHON:
        found, needed = (".".join(str(part) for part in v) for v in (version[:3], OLDEST_PYTHON))
        raise Stop(
            "课程需要 Python {} 或更新的版本，这里是 {}。".format(needed, found),
            "This course needs Python {} or newer; this is {}.".format(needed, found),
        )


def check_venv_module(find=importlib.util.find_spec):
    """Raise `Stop` where this Python cannot make an environment with pip in it."""
    for module in ("venv", "ensurepip"):
        if find(module) is None:
            raise Stop(
                "这个 Python 缺少 {} 模块；Debian/Ubuntu 上请运行 sudo apt install python3-venv，"
                "然后再试一次。".format(module),
                "This Python has no `{}` module; on Debian or Ubuntu run "
                "`sudo apt install python3-venv`, then try again.".format(module),
            )


def python_of(root):
    """The path of the environment's Python, whether or not it is there."""
    return root / ".venv" / ("Scripts/python.exe" if WINDOWS else "bin/python")


def environment(root):
    """The environment variables of everything that this program starts."""
    env = dict(os.environ)
    # Packages from outside .venv would shadow the pinned ones.
    for name in ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "__PYVENV_LAUNCHER__"):
        env.pop(name, None)
    if not env.get("JUPYTER_TOKEN"):
        env.pop("JUPYTER_TOKEN", None)  # set but empty, it would switch the token off
    env["PIP_USER"] = "0"
    env["VIRTUAL_ENV"] = str(root / ".venv")
    env["PATH"] = os.pathsep.join([str(python_of(root).parent), env.get("PATH", os.defpath)])
    # The kernel named python3 is the one in .venv, also where the user has another of that name.
    env["JUPYTER_PREFER_ENV_PATH"] = "1"
    env.setdefault("PYTHONUTF8", "1")
    env.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler prints its start and stop otherwise
    return env


def inspect_environment(root):
    """What the environment's Python says of itself, or None where it is absent or broken."""
    question = (
        "import importlib.util, json, sys, sysconfig;"
        "print(json.dumps([sys.version_info[:3], sysconfig.get_path('purelib'),"
        " importlib.util.find_spec('pip') is not None and sys.prefix != sys.base_prefix]))"
    )
    try:
        answer = subprocess.run(
            [str(python_of(root)), "-I", "-c", question],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        version, packages, usable = json.loads(answer.stdout.decode("utf-8"))
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    if not usable or tuple(version[:2]) < OLDEST_PYTHON:
        return None
    return {"version": version, "packages": Path(packages)}


def fingerprint(root, requirements, version):
    """A hash that changes when `requirements` has to be installed again.

    The folder is part of it: the library is installed by its path, so a moved course is stale.
    """
    known = [str(root), list(version), json.dumps(SETTINGS)]
    digest = hashlib.sha256(repr(known).encode("utf-8"))
    for name in (requirements, "pyproject.toml"):
        path = root / name
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def stamp_of(root):
    """The file that says what was installed; it exists only after an install that succeeded."""
    return root / ".venv" / "course-installed.json"


def is_installed(root, wanted):
    """Whether everything in `wanted`, file name to fingerprint, was installed as it is now."""
    try:
        installed = json.loads(stamp_of(root).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(installed.get(name) == value for name, value in wanted.items())


def remove_half_installed(packages):
    """Forget packages whose installation was cut short, so that pip installs them again.

    pip writes INSTALLER after all of a package's files. Without it pip would still take the
    package for installed, because METADATA comes early. What pip has set aside is named `~…`.
    """
    for folder in packages.glob("*.dist-info"):
        if not (folder / "INSTALLER").exists():
            shutil.rmtree(str(folder))
    for leftover in packages.glob("~*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(str(leftover))
        else:
            leftover.unlink()


@contextlib.contextmanager
def one_at_a_time(path):
    """Wait for other runs of this program that are installing.

    The operating system holds the lock and drops it when the process ends, however it ends: a
    crash leaves nothing to clean up. Where a file system has no locks, go on without.
    """
    with open(str(path), "ab") as handle:
        announced = False
        while not _lock(handle):
            if not announced:
                say(
                    "另一个 course.py 正在安装，等它完成 …",
                    "Another course.py is installing; waiting …",
                )
                announced = True
            time.sleep(0.3)
        yield


def _lock(handle):
    """Try once to take the lock; False where another process has it."""
    try:
        if WINDOWS:
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        pass
    return True


def make_environment(root):
    """Make `.venv`, over whatever is there; which PyTorch was asked for is kept."""
    check_venv_module()
    asked = build_of(root).read_bytes() if build_of(root).exists() else None
    import venv

    say("正在创建 Python 环境 .venv …", "Making the Python environment .venv …")
    # Made in this process: as a command of its own, it would answer Ctrl-C with a traceback.
    builder = venv.EnvBuilder(clear=True, symlinks=not WINDOWS, with_pip=True)
    # Where ensurepip fails, the inspection that follows finds no pip.
    with contextlib.suppress(subprocess.CalledProcessError):
        builder.create(str(root / ".venv"))
    if inspect_environment(root) is None:
        raise Stop(
            "无法创建 .venv；请删除 .venv 文件夹，并换用 python.org 的 Python 再试。",
            "Could not make .venv; delete the folder .venv and try again with Python "
            "from python.org.",
        )
    if asked is not None:
        build_of(root).write_bytes(asked)


def prepare(root=ROOT, requirements=(LEARNER,), cpu=None):
    """Make sure that `.venv` holds what `requirements` ask for; quick when it does already.

    `cpu`: asks for PyTorch without CUDA, from this address; `""` leaves it to pip where to look.
    None: whatever was asked for before.
    """
    found = inspect_environment(root)
    if cpu is None:
        cpu = remembered_build(root)
    if found and is_installed(root, _wanted(root, requirements, found, cpu)):
        return
    with one_at_a_time(root / ".venv.lock"):
        # Looked at again: another run may have done it all meanwhile.
        found = inspect_environment(root)
        if found is None:
            make_environment(root)
            found = inspect_environment(root)
        wanted = _wanted(root, requirements, found, cpu)
        if is_installed(root, wanted):
            return
        install(root, requirements, wanted, found["packages"], cpu)


def _wanted(root, requirements, found, cpu=None):
    wanted = {name: fingerprint(root, name, found["version"]) for name in requirements}
    if cpu is not None:
        wanted["torch"] = "cpu"
    return wanted


def install(root, requirements, wanted, packages, cpu=None):
    """Run pip on the files `requirements`, and write `wanted` as the stamp if it succeeds."""
    files = " + ".join(requirements)
    say(
        "正在安装 {} …（第一次要几分钟）".format(files),
        "Installing {} … (the first time takes a few minutes)".format(files),
    )
    stamp = stamp_of(root)
    if stamp.exists():
        stamp.unlink()
    remove_half_installed(packages)
    if cpu is not None:
        build_of(root).write_text(json.dumps({"cpu": cpu}), encoding="utf-8")
        install_torch_without_cuda(root, packages, cpu)
    elif torch_would_bring_cuda_in_vain(root, requirements, packages):
        say(
            "这台机器上没有看到 NVIDIA 显卡。Linux 上默认的 PyTorch 带着 CUDA，.venv 要占 {}；"
            "不带的只要 {}：按 Ctrl-C 停下，改用 python course.py --cpu，见 README。".format(
                WITH_CUDA, WITHOUT_CUDA
            ),
            "No NVIDIA card is seen here. Linux's default PyTorch brings CUDA, and .venv will take "
            "{}; without CUDA it takes {}: press Ctrl-C and use `python course.py --cpu`, see the "
            "README.".format(WITH_CUDA, WITHOUT_CUDA),
        )
    code = pip_install(root, [part for name in requirements for part in ("-r", name)])
    if code:
        raise Stop(
            "安装没有成功，原因见上面 pip 的输出（多半是网络）；解决之后再运行一次，会接着装完。",
            "The installation failed, for the reason pip gives above; fix it (often it is the "
            "network) and run this again: it picks up where it stopped.",
        )
    configure(root)
    fresh = stamp.with_suffix(".new")
    fresh.write_text(json.dumps(wanted), encoding="utf-8")
    os.replace(str(fresh), str(stamp))
    say("安装完成。", "Installed.")


def pip_install(root, arguments):
    """Run `pip install` in the environment and return its exit code."""
    command = [str(python_of(root)), "-m", "pip", "install", "--disable-pip-version-check"]
    return run(command + arguments, environment(root), root)


# PyTorch without CUDA


def build_of(root):
    """The file that remembers which build of PyTorch was asked for; it goes with `.venv`."""
    return root / ".venv" / "course-torch.json"


def remembered_build(root):
    """The address that `--cpu` was last used with, or None."""
    try:
        return str(json.loads(build_of(root).read_text(encoding="utf-8"))["cpu"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def pinned_torch(root, requirements=(LEARNER,)):
    """The line that pins PyTorch in `requirements`, such as `torch==2.13.0`, or None."""
    for name in requirements:
        for line in (root / name).read_text(encoding="utf-8").splitlines():
            pin = line.partition("#")[0].strip()
            if pin.startswith("torch=="):
                return pin
    return None


def torch_would_bring_cuda_in_vain(root, requirements, packages, card=None):
    """Whether PyTorch is about to be installed, with CUDA, where no NVIDIA card is seen."""
    brings_it = sys.platform.startswith("linux") and platform.machine() == "x86_64"
    if not brings_it or any(packages.glob("torch-*.dist-info")):
        return False
    if card is None:
        card = shutil.which("nvidia-smi") or any(Path("/dev").glob("nvidia*"))
    return not card and pinned_torch(root, requirements) is not None


def install_torch_without_cuda(root, packages, address):
    """Install the `+cpu` build of the PyTorch that the course pins.

    By itself and without what it needs, which the requirements bring: no other package is looked
    for at `address`. Elsewhere than on Linux the default has no CUDA anyway.
    """
    pin = pinned_torch(root)
    if pin is None or not sys.platform.startswith("linux"):
        return
    say("不带 CUDA 的 PyTorch …", "PyTorch without CUDA …")
    where = ["--index-url", address] if address else []
    if pip_install(root, ["--no-deps", *where, pin + "+cpu"]):
        raise Stop(
            "没有装上不带 CUDA 的 PyTorch（{0}+cpu），原因见上面 pip 的输出。它的地址在 {1} 上："
            "选 Linux、Pip、CPU，命令末尾的那个地址就是；然后运行 python course.py --cpu ADDRESS。"
            "想用默认的 PyTorch，请删除 .venv 再运行 python course.py。".format(pin, SELECTOR),
            "PyTorch without CUDA ({0}+cpu) was not installed, for the reason pip gives above. Its "
            "address stands on {1}: choose Linux, Pip and CPU, and take the address that ends the "
            "command; then run `python course.py --cpu ADDRESS`. For the default PyTorch, delete "
            ".venv and run `python course.py`.".format(pin, SELECTOR),
        )
    left_over = cuda_packages(packages)
    if left_over:
        say("不再需要的 CUDA 包 …", "CUDA packages that nothing needs any more …")
        command = [str(python_of(root)), "-m", "pip", "uninstall", "--yes", "--quiet"]
        run(command + left_over, environment(root), root)


def cuda_packages(packages):
    """Names of installed packages that only a PyTorch with CUDA needs."""
    names = [path.name.split("-")[0] for path in packages.glob("*.dist-info")]
    return sorted(n for n in names if n.startswith(("nvidia_", "cuda_")) or n == "triton")


def take_build(arguments):
    """Take `--cpu [ADDRESS]` out of `arguments`: the rest, and the address (None without --cpu)."""
    rest, address = [], None
    end = arguments.index("--") if "--" in arguments else len(arguments)
    waiting = list(arguments[:end])
    while waiting:
        argument = waiting.pop(0)
        if argument == "--cpu":
            given = waiting.pop(0) if waiting and "://" in waiting[0] else ""
            address = given or os.environ.get(TORCH_INDEX, "")
        elif argument.startswith("--cpu="):
            address = argument[len("--cpu=") :]
        else:
            rest.append(argument)
    return rest + list(arguments[end:]), address


def configure(root):
    """Write the environment's settings."""
    for name, settings in SETTINGS.items():
        path = root / ".venv" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings), encoding="utf-8")


# Running


def run(command, env, cwd):
    """Run a command in the foreground and return its exit code; it does not outlive this one.

    Ctrl-C reaches the command too: it gets ten seconds to end in its own way.
    """
    child = subprocess.Popen(command, env=env, cwd=str(cwd))
    interrupted, patience = False, None
    try:
        while child.returncode is None:
            try:
                child.wait(timeout=patience)
            except KeyboardInterrupt:
                interrupted, patience = True, 10
            except subprocess.TimeoutExpired:
                child.kill()
    finally:
        if child.returncode is None:
            child.terminate()
            child.wait()
    if interrupted:
        raise KeyboardInterrupt
    return child.returncode


def become(command, env, cwd):
    """Run a command in place of this program, so that signals go straight to it."""
    if WINDOWS:  # has no exec that keeps the console
        return run(command, env, cwd)
    os.chdir(str(cwd))
    os.execve(command[0], command, env)


# Lessons


def lessons(root=ROOT):
    """The notebooks of the course, in order."""
    return sorted((root / "notebooks").glob("[0-9]*.ipynb"))


def find_lesson(name, root=ROOT):
    """The notebook that `name` means: a number, a title such as `01_activation_memory`, a file."""
    there = lessons(root)
    wanted = name.replace("\\", "/").rsplit("/", 1)[-1]
    if wanted.endswith(".ipynb"):
        wanted = wanted[: -len(".ipynb")]
    for path in there:
        number = path.stem.split("_")[0]
        if wanted.isdecimal() and number.isdecimal() and int(wanted) == int(number):
            return path
        if wanted.lower() == path.stem.lower():
            return path
    names = ", ".join(path.stem for path in there)
    raise Stop(
        "没有“{}”这一课；现有：{}。".format(name, names or "（无）"),
        "There is no lesson “{}”; there are: {}.".format(name, names or "none"),
    )


def lab_command(python, root, lesson, browser=True, options=()):
    """The command that starts JupyterLab at `lesson`, on this machine only, with its token on."""
    command = [
        str(python), "-m", "jupyterlab",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.root_dir=" + str(root),
        "--LabApp.default_url=/lab/tree/" + lesson.relative_to(root).as_posix(),
        # What a lesson shows that is opened without a kernel.
        "--LabServerApp.extra_labextensions_path=" + str(ROOT / "course_lib" / "notebook" / "page"),
        # Lines of prose are not as wide as the window: assets/page/custom.css.
        "--LabApp.custom_css=True",
        "--ServerApp.tornado_settings=static_custom_path=" + str(ROOT / "assets" / "page"),
    ]  # fmt: skip
    if not browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # as in a container; anyone else is refused nothing
    return command + list(options)


def learner_language(python, env, root):
    """What the lessons will begin with: `zh`, `en` or `both`; None where they cannot tell."""
    question = "from course_lib.language import language; print(language())"
    try:
        answer = subprocess.run(
            [str(python), "-c", question], env=env, cwd=str(root),
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.decode("utf-8").strip()


def set_up_jupyterlab(folder, language):
    """Write JupyterLab's defaults into `folder`; what the user sets in JupyterLab goes before them.

    It does not ask about news or look for updates, and saves widgets with a notebook. Its menus
    are in the learner's language, or, for one who reads both, in the locale's.
    """
    defaults = {
        "@jupyterlab/apputils-extension:notification": {
            "fetchNews": "false",
            "checkForUpdates": False,
        },
        # What sliders and fields show is there when a lesson is opened again without a kernel.
        "@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": True},
    }
    locale = {"zh": "zh_CN", "en": "en"}.get(language)
    if locale:
        defaults["@jupyterlab/translation-extension:plugin"] = {"locale": locale}
    # A folder that cannot be written to is no reason not to start.
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "overrides.json").write_text(json.dumps(defaults), encoding="utf-8")


def lab(arguments, root=ROOT):
    """Open JupyterLab at a lesson."""
    options = []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, options = arguments[:cut], arguments[cut + 1 :]
    browser = "--no-browser" not in arguments
    names = [argument for argument in arguments if argument != "--no-browser"]
    if len(names) > 1 or any(name.startswith("-") for name in names):
        raise Stop(
            "看不懂“{}”；用法见 python course.py --help。".format(" ".join(names)),
            "Cannot make sense of “{}”; see `python course.py --help`.".format(" ".join(names)),
        )
    lesson = find_lesson(names[0] if names else "0", root)
    prepare(root)
    env = environment(root)
    language = learner_language(python_of(root), env, root)
    set_up_jupyterlab(root / ".venv" / "share" / "jupyter" / "lab" / "settings", language)
    title = lesson.stem
    say("正在打开 {} …（Ctrl-C 结束）".format(title), "Opening {} … (Ctrl-C to stop)".format(title))
    command = lab_command(python_of(root), root, lesson, browser, options)
    return become(command, env, root)


def strict_environment(root):
    """The variables under which outputs are stored and compared: English, two threads."""
    env = environment(root)
    env["COURSE_LANG"] = "en"
    # Some operators' workspace grows with the number of threads: stored bytes are those of two.
    env["OMP_NUM_THREADS"] = "2"
    # Threads that wait should sleep: kernels, a browser and the tests share the cores.
    env["OMP_WAIT_POLICY"] = "PASSIVE"
    env["IPYTHONDIR"] = str(root / ".venv" / "ipython")
    return env


def test(arguments, root=ROOT):
    """Run the tests and then every notebook, or just what pytest's `arguments` name."""
    prepare(root, (LEARNER, TESTS))
    pytest, env = [str(python_of(root)), "-m", "pytest"], strict_environment(root)
    if arguments:
        return become([*pytest, *arguments], env, root)
    # In three processes, on two cores too: tests that drive a browser wait most of the time. The
    # conftest of tests/ says what belongs together; of the notebooks, each is run by one.
    pytest += ["-q", "--durations=40", "-n", "3"]
    say("[1/2] 测试", "[1/2] tests")
    grouped = ["--dist", "loadscope", "--no-loadscope-reorder"]
    first = run([*pytest, *grouped, "tests"], env, root)
    if first:
        say("[1/2] 没有通过", "[1/2] failed (exit code {})".format(first))
    say("[2/2] 逐格核对 notebook 的输出", "[2/2] notebooks, cell by cell")
    second = run([*pytest, "--dist", "loadfile", "--nbval", "notebooks"], env, root)
    return first or second


def refresh(arguments, root=ROOT):
    """Run notebooks from top to bottom and store their outputs."""
    chosen = [find_lesson(name, root) for name in arguments] or lessons(root)
    prepare(root, (LEARNER, TESTS))
    script = [str(python_of(root)), str(root / "tools" / "refresh.py")]
    return run(script + [str(path) for path in chosen], strict_environment(root), root)


def export(arguments, root=ROOT):
    """Write the course as web pages: `--lang zh`, `en` or `both`, and where to."""
    options = {arguments[i]: arguments[i + 1] for i in range(0, len(arguments) - 1, 2)}
    language = options.pop("--lang", None)
    folder = options.pop("--to", None)
    if language not in ("zh", "en", "both") or options or len(arguments) % 2:
        raise Stop(
            "用法：python course.py export --lang zh|en|both [--to FOLDER]",
            "Use it as: python course.py export --lang zh|en|both [--to FOLDER]",
        )
    folder = os.path.abspath(folder) if folder else str(root / "edition" / language)
    prepare(root, (LEARNER, TESTS))
    command = [str(python_of(root)), "-m", "course_lib.site.pages", language, folder]
    code = run(command, strict_environment(root), root)
    if not code:
        start = os.path.join(folder, "index.html")
        say("写好了：{}".format(start), "Written: {}".format(start))
    return code


def benchmark(arguments, root=ROOT):
    """Measure what the course claims of itself, all or the parts named, and store the tables."""
    prepare(root, (LEARNER, TESTS))
    script = [str(python_of(root)), str(root / "tools" / "benchmarks" / "run.py")]
    return run(script + arguments, strict_environment(root), root)


def dev(arguments, root=ROOT):
    """Run one of the tools in tools/."""
    tools = {path.stem: path for path in sorted((root / "tools").glob("*.py"))}
    tools.pop("refresh", None)  # a command of its own
    if not arguments or arguments[0] not in tools:
        name, names = " ".join(arguments[:1]), ", ".join(tools)
        raise Stop(
            "没有“{}”这个工具；现有：{}。".format(name, names),
            "There is no tool “{}”; there are: {}.".format(name, names),
        )
    prepare(root, (LEARNER, TESTS, TOOLS))
    command = [str(python_of(root)), str(tools[arguments[0]]), *arguments[1:]]
    return become(command, strict_environment(root), root)


def main(arguments):
    """Do what the command line says and return the exit code."""
    try:
        check_python(sys.version_info)
        if arguments and arguments[0] in ("-h", "--help", "help"):
            say(USAGE_ZH, USAGE_EN)
            return 0
        arguments, cpu = take_build(arguments)
        if cpu is not None:
            prepare(ROOT, cpu=cpu)
        commands = {
            "lab": lab,
            "test": test,
            "refresh": refresh,
            "export": export,
            "benchmark": benchmark,
            "dev": dev,
        }
        if arguments and arguments[0] in commands:
            return commands[arguments[0]](arguments[1:])
        return lab(arguments)
    except Stop as stop:
        say(*stop.args, stream=sys.stderr)
        return 1
    except PermissionError as error:
        say(
            "没有写入权限：{}；请把课程放到自己的文件夹里。".format(error.filename),
            "No permission to write {}; move the course to a folder of your own.".format(
                error.filename
            ),
            stream=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        say("\n已中断。", "Interrupted.", stream=sys.stderr)
        return 130


if __name__ == "__main__":
    # Ending this program ends what it started: `run` cleans up on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
