"""Where the files of the course are, which stands around the library."""

from pathlib import Path

LIBRARY = Path(__file__).parent
ROOT = LIBRARY.parent
NOTEBOOKS = ROOT / "notebooks"
ASSETS = ROOT / "assets"
