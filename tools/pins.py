"""Pin the newest versions that go together, in every file that pins them.

    python course.py dev pins [NAME ...]

Without names, all are looked at; with names, only those move. "Together" means on every system
and on every Python that pyproject.toml allows. Nothing is installed: the next `course.py` does.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = (
    "requirements.txt", "requirements-test.txt", "requirements-dev.txt", "requirements-audit.txt",
    "pyproject.toml",
)  # fmt: skip
PIN = re.compile(
    r"(?P<name>[A-Za-z][\w-]*)(?P<extras>\[[\w,-]+\])?==(?P<version>[\d.]+\d(?:\.?post\d+)?)"
)


def pins(text: str) -> dict[str, str]:
    """What `text` pins: name with extras, such as `jsonargparse[signatures]`, to version."""
    return {found["name"] + (found["extras"] or ""): found["version"]
            for found in PIN.finditer(text)}  # fmt: skip


def repinned(text: str, versions: dict[str, str]) -> str:
    """`text` with every pin of a name in `versions` moved there; all else stays."""

    def moved(found: re.Match) -> str:
        version = versions.get(found["name"].lower(), found["version"])
        return f"{found['name']}{found['extras'] or ''}=={version}"

    return PIN.sub(moved, text)


def newest(wanted: list[str], oldest_python: str) -> dict[str, str]:
    """The newest versions of `wanted`, lines of a requirements file, that go together."""
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "-", "--universal", "--fork-strategy",
        "fewest", "--python-version", oldest_python, "--no-header", "--no-annotate", "--quiet",
    ]  # fmt: skip
    run = subprocess.run(
        command, input="\n".join(wanted), stdout=subprocess.PIPE, encoding="utf-8", cwd=ROOT.anchor
    )
    if run.returncode:
        raise SystemExit(run.returncode)
    return {name.lower(): version for name, version in pins(run.stdout).items()}


def main(names: list[str], root: Path = ROOT) -> None:
    texts = {name: (root / name).read_text(encoding="utf-8") for name in FILES}
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    now = {name: version for text in texts.values() for name, version in pins(text).items()}
    plain = {name: name.partition("[")[0].lower() for name in now}
    if unknown := set(map(str.lower, names)) - set(plain.values()):
        raise SystemExit(f"not pinned: {', '.join(sorted(unknown))}")
    wanted = [
        name if not names or plain[name] in map(str.lower, names) else f"{name}=={version}"
        for name, version in now.items()
    ]
    found = newest(wanted, project["requires-python"].removeprefix(">="))
    for name, version in now.items():
        if found[plain[name]] != version:
            print(f"{name} {version} → {found[plain[name]]}")
    for name, text in texts.items():
        (root / name).write_text(repinned(text, found), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
