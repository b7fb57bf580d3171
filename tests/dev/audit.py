"""Known vulnerabilities in what is installed, and faults in the workflows.

    python course.py dev audit

A package that cannot be looked up counts as a failure, not as a clean one.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
EXPLAINED: dict[str, str] = {}  # a finding's number: why it does not concern the course


def run(*command: str) -> int:
    """Run a program of the environment in the root folder; its exit code."""
    print(f"[{command[0]}]", flush=True)
    return subprocess.run(command, cwd=ROOT).returncode


def audit() -> int:
    """Ask about every package that is installed, at its version; the number of failures."""
    freeze = [sys.executable, "-m", "pip", "freeze", "--exclude-editable", "--all"]
    lines = subprocess.run(freeze, stdout=subprocess.PIPE, check=True, text=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        frozen = Path(folder) / "frozen.txt"
        # torch 2.13.0+cpu is known as 2.13.0.
        names = (line.partition(" @ ")[0].partition("+")[0] for line in lines.splitlines())
        frozen.write_text("\n".join(names), encoding="utf-8")
        ignored = [word for number in EXPLAINED for word in ("--ignore-vuln", number)]
        found = run("pip-audit", "--strict", "--disable-pip", "--no-deps",
                    "--progress-spinner=off", *ignored, "-r", str(frozen))  # fmt: skip
    workflows = sorted(str(path) for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    schema = run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    return sum(map(bool, (found, schema, run("zizmor", "--offline", "--no-progress", "."))))


if __name__ == "__main__":
    sys.exit(audit())
