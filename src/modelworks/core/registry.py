"""Plug-ins: one file each, found by looking into their folder, never by a list."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Protocol, TypeVar

from modelworks.core.errors import NotFound


class Named(Protocol):
    @property
    def name(self) -> str: ...


P = TypeVar("P", bound=Named)


def find_plugins(folder: str, kind: type[P]) -> Mapping[str, P]:
    """Import every module of the package `folder` and collect its values of type `kind`, by name."""
    found = _values_of(folder, kind)
    return {plugin.name: plugin for plugin in found if isinstance(plugin, kind)}


@cache
def _values_of(folder: str, kind: type[object]) -> tuple[object, ...]:
    package = importlib.import_module(folder)
    values: list[object] = []
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{folder}.{info.name}")
        values += [value for value in vars(module).values() if isinstance(value, kind)]
    return tuple(values)


def choose(plugins: Mapping[str, P], name: str, what: str) -> P:
    """Return the plug-in called `name`.

    Raises:
        NotFound: naming the nearest names.
    """
    if name in plugins:
        return plugins[name]
    raise NotFound(f"no {what} is called {name!r}; {nearest(name, plugins)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names look like `name`, or list them all: the end of an error message."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(names) if names else "there is none yet"
