"""Say where on GitHub the course is published, in every file that leads there.

    python course.py dev address OWNER/NAME

Those are the README's badges, the first cells of each lesson, the citation, and
course_lib/site/contents, which the tests compare all of them with. The web edition's address
follows from the repository's.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAME = re.compile(r"[\w.-]+/[\w.-]+", re.A)
KEPT = re.compile(r'^REPOSITORY = "(.+)"$', re.M)


def files(root: Path) -> list[Path]:
    """Every file that may hold the address."""
    return [root / "README.md", root / "CITATION.cff", root / "course_lib" / "site" / "contents.py",
            *sorted((root / "notebooks").glob("*.ipynb"))]  # fmt: skip


def edition_of(repository: str) -> str:
    """As course_lib/site/contents.py has it."""
    owner, _, name = repository.partition("/")
    return f"https://{owner}.github.io/{name}"


def main(arguments: list[str], root: Path = ROOT) -> None:
    if len(arguments) != 1 or not NAME.fullmatch(arguments[0]):
        raise SystemExit("one argument, such as owner/name")
    now = KEPT.search((root / "course_lib" / "site" / "contents.py").read_text(encoding="utf-8"))
    assert now is not None
    for path in files(root):
        before = path.read_text(encoding="utf-8")
        after = before.replace(now[1], arguments[0])
        after = after.replace(edition_of(now[1]), edition_of(arguments[0]))
        if after != before:
            path.write_text(after, encoding="utf-8", newline="\n")
            print(path.relative_to(root).as_posix())


if __name__ == "__main__":
    main(sys.argv[1:])
