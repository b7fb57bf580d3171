"""Rebuild CourseSansSC-Regular.otf, the Chinese font of the course's figures.

    python assets/fonts/subset.py /usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc

Needs fonttools and Noto Sans CJK, as a `.ttc` or as NotoSansSC-Regular.otf: Debian has it in
`fonts-noto-cjk`, its home is https://github.com/notofonts/noto-cjk. What is kept: the 6763 Han
characters of GB 2312, so that prose can be written freely, ASCII, Chinese punctuation, and whatever
else the course's code and lessons use. The family gets a name of its own, so that a Noto font on
the learner's machine is never taken for it. The same source and text give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTCollection, TTFont

HERE = Path(__file__).parent
COURSE = HERE.parent.parent
TARGET = HERE / "CourseSansSC-Regular.otf"
FAMILY = "Course Sans SC"
POSTSCRIPT_NAME = "CourseSansSC-Regular"
CHINESE = "Noto Sans CJK SC", "Noto Sans SC"  # the same outlines, packed differently
PUNCTUATION = "·—–‘’“”…‰′″×÷±≈≠≤≥→←↑↓√∞°，。、；：？！（）《》〈〉「」『』【】〔〕～￥　"


def is_han(letter: str) -> bool:
    """Whether it is Han, Chinese punctuation or a full-width form: what only this font has."""
    return (
        "\u2e80" <= letter <= "\u9fff"
        or "\uf900" <= letter <= "\ufaff"
        or "\ufe30" <= letter <= "\ufe4f"
        or "\uff01" <= letter <= "\uffee"
    )


def gb_2312() -> set[str]:
    """The 6763 Han characters of GB 2312: rows 16 to 87 of its table."""
    found = set()
    for row in range(0xB0, 0xF8):
        for column in range(0xA1, 0xFF):
            try:
                found.add(bytes((row, column)).decode("gb2312"))
            except UnicodeDecodeError:  # the last five places of row 55 are empty
                continue
    return found


def used_by_the_course() -> set[str]:
    """Every character of the library's code and of the lessons."""
    files = [*COURSE.glob("course_lib/*.py"), *COURSE.glob("notebooks/*.ipynb")]
    return set().union(*(file.read_text(encoding="utf-8") for file in files))


def wanted() -> set[str]:
    """What the font is to hold, as far as the source has it."""
    ascii_letters = {chr(code) for code in range(0x20, 0x7F)}
    return gb_2312() | used_by_the_course() | ascii_letters | set(PUNCTUATION)


def open_chinese(path: Path) -> TTFont:
    """The Simplified Chinese font in `path`. Raises `ValueError` if there is none."""
    if path.suffix.lower() in (".ttc", ".otc"):
        fonts = TTCollection(path, lazy=True).fonts
    else:
        fonts = [TTFont(path, lazy=True)]
    for font in fonts:
        if font["name"].getDebugName(1) in CHINESE:
            return font
    raise ValueError(f"{path} holds none of {CHINESE}")


def rename(font: TTFont) -> None:
    """Give the family its own name; the copyright and the licence stay as they are."""
    names = font["name"]
    names.names = [name for name in names.names if name.nameID in (0, 5, 13, 14)]
    own = {1: FAMILY, 2: "Regular", 3: POSTSCRIPT_NAME, 4: FAMILY, 6: POSTSCRIPT_NAME,
           10: "A subset of Noto Sans CJK SC under a name of its own."}  # fmt: skip
    for number, value in own.items():
        names.setName(value, number, 3, 1, 0x409)
    table = font["CFF "].cff
    table.fontNames = [POSTSCRIPT_NAME]
    top = table.topDictIndex[0]
    top.FullName, top.FamilyName = FAMILY, FAMILY
    if hasattr(top, "Notice"):
        del top.Notice  # name 0 says it; here it would carry the trademark


def build(source: Path, target: Path = TARGET) -> None:
    """Write the subset of `source` to `target`."""
    font = open_chinese(source)
    font.recalcTimestamp = False
    options = subset.Options()
    options.layout_features = []  # no ligatures or vertical forms in a figure
    options.drop_tables += ["BASE", "GDEF", "GPOS", "GSUB", "VORG", "vhea", "vmtx"]
    options.hinting = False  # Matplotlib hints by itself
    options.name_IDs = ["*"]
    options.notdef_outline = True
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=map(ord, wanted()))
    subsetter.subset(font)
    rename(font)
    font.save(target)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="NotoSansCJK-Regular.ttc or NotoSansSC-Regular")
    build(parser.parse_args().source)
    print(f"{TARGET.name}: {TARGET.stat().st_size:,} bytes, {len(wanted()):,} characters asked for")
    return 0


if __name__ == "__main__":
    sys.exit(main())
