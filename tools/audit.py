"""Known vulnerabilities in what is installed, and faults in the workflows.

    python course.py dev audit

A package that cannot be looked up counts as a failure, not as a clean one.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXPLAINED: dict[str, str] = {}  # a finding's number: why it does not concern the course


def install(home: Path) -> Path:
    """Install the programs that this tool runs; the folder they are in.

    Not beside the course, whose packages they would change.
    """
    venv.create(home, with_pip=True)
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    wanted = ["-r", str(ROOT / "requirements-audit.txt")]
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", *wanted], check=True)
    return programs


def run(programs: Path, name: str, *arguments: str) -> int:
    """Run a program in the root folder; its exit code."""
    print(f"[{name}]", flush=True)
    return subprocess.run([programs / name, *arguments], cwd=ROOT).returncode


def audit() -> int:
    """Ask about every package that is installed, at its version; the number of failures."""
    programs = install(Path(sys.prefix) / "audit")
    freeze = [sys.executable, "-m", "pip", "freeze", "--exclude-editable", "--all"]
    lines = subprocess.run(freeze, stdout=subprocess.PIPE, check=True, text=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        frozen = Path(folder) / "frozen.txt"
        # torch 2.13.0+cpu is known as 2.13.0.
        names = (line.partition(" @ ")[0].partition("+")[0] for line in lines.splitlines())
        frozen.write_text("\n".join(names), encoding="utf-8")
        ignored = [word for number in EXPLAINED for word in ("--ignore-vuln", number)]
        found = run(programs, "pip-audit", "--strict", "--disable-pip", "--no-deps",
                    "--progress-spinner=off", *ignored, "-r", str(frozen))  # fmt: skip
    workflows = sorted(str(path) for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    builtin = ["--builtin-schema", "vendor.github-workflows"]
    schema = run(programs, "check-jsonschema", *builtin, *workflows)
    faults = run(programs, "zizmor", "--offline", "--no-progress", ".")
    return sum(map(bool, (found, schema, faults)))


if __name__ == "__main__":
    sys.exit(audit())
