"""Lightning, without what it says again before each fit."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Switch off what Lightning says again before each fit, for the rest of the process.

    That is: which devices there are, the seed, how the fit ended; that more workers would load
    data faster and that log intervals are long; and a deprecation in its own code. Errors and all
    other warnings stay.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",  # a line of Lightning's own
    ):
        warnings.filterwarnings("ignore", advice)
