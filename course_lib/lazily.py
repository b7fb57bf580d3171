"""Names of a package that are loaded when they are first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def loading(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of ``package``; ``modules``: module → the names that come from it.

    A module is given as it is imported, relative to the package: ``.measurement``. Importing the
    package then takes next to no time, and loads torch only for those who use it.

    No name may be that of one of the modules: Python puts a module, once imported, in its place.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}
    both = set(homes) & {module.strip(".") for module in modules}
    assert not both, f"{package}: a module and a name in it are both called {both}"

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name], package), name)

    return load
