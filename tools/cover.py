"""Which lines of course_lib its tests run; an error if they are fewer than pyproject.toml asks.

    python course.py dev cover [PYTEST ARGUMENTS]

Without arguments, all tests but those of notebooks, browser and `course.py`, which run the
library too, but ask other questions, and of interruptions: a kernel that is stopped while
coverage holds its lock would wait for it forever.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ELSEWHERE = (
    "test_code", "test_course_command", "test_dev", "test_interruptions", "test_notebooks*",
    "test_readme",
)  # fmt: skip


def coverage(*command: str) -> int:
    return subprocess.run([sys.executable, "-m", "coverage", *command], cwd=ROOT).returncode


def main(arguments: list[str]) -> int:
    ignored = [f"--ignore-glob=*/{name}.py" for name in ELSEWHERE]
    chosen = arguments or ["tests", "--ignore=tests/browser", *ignored]
    coverage("erase")
    failed = coverage("run", "-m", "pytest", "-q", *chosen)
    coverage("combine", "--quiet")
    return coverage("report") or failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
