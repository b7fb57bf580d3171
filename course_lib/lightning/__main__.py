"""``python -m course_lib.lightning``: see :func:`command.main`."""

from .command import main

main()
