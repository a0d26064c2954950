"""Tokenizers as a merge must know them: their tokens, where two of them clash, and the files of the result's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelworks.core.errors import Invalid, Problem
from modelworks.core.hashing import hash_file
from modelworks.core.nouns import JsonObject
from modelworks.weights.safety import read_object

POLICIES = "say tokenizer: base, first, union, or the model whose tokens the result is to have"
TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Tokens:
    """What tokenizer.json says: every token's number, and the entries of those that were added to the model's own."""

    ids: Mapping[str, int]
    added: Mapping[str, JsonObject]


class TokenReader:
    """Reads tokenizers; those of the same content once."""

    def __init__(self) -> None:
        self._seen: dict[str, Tokens] = {}

    def read(self, folder: Path) -> Tokens | None:
        """None where there is no tokenizer.json.

        Raises:
            Invalid: it is damaged.
        """
        digest = digest_of(folder)
        if digest is not None and digest not in self._seen:
            self._seen[digest] = _parse(folder / TOKENIZER)
        return None if digest is None else self._seen[digest]


def digest_of(folder: Path) -> str | None:
    """Of the tokenizer's very bytes; None where there is none."""
    file = folder / TOKENIZER
    return hash_file(file) if file.is_file() else None


def _parse(file: Path) -> Tokens:
    content: Any = read_object(file)
    try:
        own = content["model"]["vocab"]
        ids = {token: place for place, (token, _) in enumerate(own)} if isinstance(own, list) else dict(own)
        added = {entry["content"]: entry for entry in content.get("added_tokens") or ()}
        return Tokens(ids | {token: int(entry["id"]) for token, entry in added.items()}, added)
    except (KeyError, TypeError, ValueError) as error:
        raise Invalid(f"{file}: not a tokenizer ({error!r}); fetch it again") from None


def clashes(name: str, theirs: Tokens, whose: str, ours: Tokens, warnings: list[str]) -> Iterator[Problem]:
    """Numbers that mean different tokens to two models; only what makes the merge wrong is a problem."""
    if theirs is ours:
        return
    by_id = {place: token for token, place in ours.ids.items()}
    moved = [token for token, place in theirs.ids.items() if ours.ids.get(token, place) != place]
    replaced = [(by_id[place], token) for token, place in theirs.ids.items()
                if token not in ours.ids and place in by_id]  # fmt: skip
    unknown = [token for token, place in theirs.ids.items() if token not in ours.ids and place not in by_id]
    # A reserved token that was given a name and a meaning is still the same row.
    renamed = [(old, new) for old, new in replaced if old in ours.added and new in theirs.added]
    if moved:
        shown = ", ".join(f"{token!r} is {theirs.ids[token]}, in {whose} {ours.ids[token]}" for token in moved[:_SHOWN])
        yield Problem(name, f"{len(moved)} tokens have other numbers: {shown}", POLICIES, "tokenizer_conflict")
    if len(replaced) > len(renamed):
        shown = ", ".join(f"{new!r} stands where {whose} has {old!r}" for old, new in replaced[:_SHOWN])
        what = f"{len(replaced)} tokens are others: {shown}"
        yield Problem(name, what, POLICIES, "tokenizer_conflict")
    elif renamed:
        shown = ", ".join(f"{new!r} is {old!r} in {whose}" for old, new in renamed[:_SHOWN])
        warnings.append(f"{name}: {len(renamed)} special tokens have other names: {shown}; the result has {whose}'s")
    if unknown:
        shown = ", ".join(map(repr, unknown[:_SHOWN]))
        warnings.append(f"{name}: {len(unknown)} tokens are unknown to {whose}: {shown}; tokenizer union keeps them")


def template_of(folder: Path) -> str | None:
    """A model's chat template, wherever it is kept."""
    file = folder / TEMPLATE
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    for path in (folder / "chat_template.json", folder / "tokenizer_config.json"):
        told = read_object(path).get("chat_template") if path.is_file() else None
        if isinstance(told, list):
            told = next((item.get("template") for item in told if item.get("name") == "default"), None)
        if isinstance(told, str) and told:
            return told.strip()
    return None


def choose_template(
    wanted: str | None, folders: Mapping[str, Path], problems: list[Problem], warnings: list[str]
) -> str | None:
    """The chat template to write into the result; None: that of its tokenizer.

    Args:
        folders: of the models by name, the frame first.
    """
    if wanted is not None and wanted != "auto" and wanted not in folders:
        if "{" not in wanted:
            what = f"{wanted!r} is none of the models, and no Jinja"
            problems.append(Problem("chat_template", what, f"auto, Jinja, or one of {', '.join(folders)}"))
        return wanted
    told = {name: template_of(folder) for name, folder in folders.items()}
    if wanted is not None and wanted in folders:
        if told[wanted] is None:
            problems.append(Problem("chat_template", f"{wanted} has none", "name another model", "tokenizer_conflict"))
        return told[wanted]
    found = Counter(template for template in told.values() if template is not None)
    if wanted == "auto":
        return found.most_common(1)[0][0] if found else None
    frame, own = next(iter(told.items()))
    other = [name for name, template in told.items() if template not in (None, own)]
    if other:
        has = "another chat template than" if own else "a chat template, unlike"
        warnings.append(f"{', '.join(other)}: {has} {frame}, whose the result has; see chat_template")
    return None
