"""Models of a user's own: what `config.json` says of them, and the class they are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from modelworks.core.errors import Invalid, NotFound
from modelworks.core.ids import check_name
from modelworks.core.spec import Spec, parse_spec

CONFIG = "config.json"
_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|//[^\n]*')


class ModelServerEntry:
    """What a user's own model is: any class in the package `models` that has these three methods.

    A message is `{"role": ..., "content": ...}`, with the roles as the caller sent them: user and agent on the Model
    Server's paths, user, assistant and system on the OpenAI ones.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the `params` of config.json; they are a list or a dict there."""

    def activate(self, device: str) -> None:
        """Load onto `cpu` or `cuda:N`; called once, before any inference."""
        raise NotImplementedError

    def deactivate(self) -> None:
        """Free what was loaded; called once, when the process is about to end."""
        raise NotImplementedError

    def inference(self, batch: list[list[dict[str, str]]], temperature: float) -> list[str]:
        """Answer each conversation of `batch`, in its order."""
        raise NotImplementedError


class Entry(Spec):
    """One entry of config.json. Its code is imported in its engine's process only."""

    name: str
    folder: Path
    class_name: str
    params: list[Any] | dict[str, Any]
    batch_size: int


class _Written(Spec):
    name: str = Field(min_length=1)
    params: list[Any] | dict[str, Any] = Field(default_factory=list)
    batch_size: int | None = Field(None, ge=1)


def read_entries(folder: Path, batch_size: int) -> dict[str, Entry]:
    """The entries of `folder`, by their internal name. `batch_size` holds where the entry sets none.

    Raises:
        NotFound: there is no config.json, or no package `models`.
        Invalid: config.json cannot be read, with file and line.
    """
    path = folder / CONFIG
    for needed in (path, folder / "models"):
        if not needed.exists():
            raise NotFound(f"{needed} is missing; a folder of entries has {CONFIG} and a package `models`")
    try:
        found = json.loads(without_comments(path.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise Invalid(f"{path}: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(body, dict) for body in found.values()):
        raise Invalid(f'{path}: write {{"internal_name": {{"name": "EntryClass", "params": []}}, ...}}')
    return {check_name(name): _entry(folder, name, body, batch_size) for name, body in found.items()}


def without_comments(text: str) -> str:
    """Take `//` comments out of JSON, but not out of its strings; lines keep their numbers."""
    return _COMMENT.sub(lambda match: match.group(1) or "", text)


def class_of(entry: Entry, package: object) -> type[Any]:
    """The class that `entry` names, in the imported package `models`.

    Raises:
        Invalid: there is none, naming those there are.
    """
    found = getattr(package, entry.class_name, None)
    if isinstance(found, type) and callable(getattr(found, "inference", None)):
        return found
    known = sorted(name for name, value in vars(package).items() if _is_entry(name, value))
    has = f"it has {', '.join(known)}" if known else "it has no entry; import yours in models/__init__.py"
    raise Invalid(
        f"{entry.folder / CONFIG}: {entry.name} names {entry.class_name!r}, which the package `models` lacks; {has}"
    )


def words(text: str) -> int:
    """The length of a text in what counts as an entry's tokens: its own it does not tell."""
    return len(text.split())


def shorten(text: str, stops: Sequence[str], most_words: int | None) -> tuple[str, bool]:
    """`text` up to the first of `stops`, and at most so many words of it; and whether words were cut off."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    text = text[: min(ends)] if ends else text
    if most_words is None or words(text) <= most_words:
        return text, False
    pieces = re.findall(r"\s*\S+", text)
    return "".join(pieces[:most_words]), True


def _entry(folder: Path, name: str, body: Mapping[str, object], batch_size: int) -> Entry:
    written = parse_spec(_Written, body, where=f"{folder / CONFIG}: {name}")
    return Entry(
        name=name,
        folder=folder,
        class_name=written.name,
        params=written.params,
        batch_size=written.batch_size or batch_size,
    )


def _is_entry(name: str, value: object) -> bool:
    return isinstance(value, type) and name != "ModelServerEntry" and callable(getattr(value, "inference", None))
