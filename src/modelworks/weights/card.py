"""The card of a model folder, README.md: a head for machines, what it was made from, what its maker has to say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from modelworks.core.nouns import JsonObject, Parent


def write_card(
    folder: Path, name: str, front: Mapping[str, object], words: Sequence[str], parents: Sequence[Parent],
    rest: Sequence[str], told: tuple[str, JsonObject],
) -> None:  # fmt: skip
    """Write one; says nothing of time and place, so that the same work gives the same folder.

    `front` is its head, `words` say in a sentence what it is, `rest` stands below the table of its parents, and `told`
    is the title and the object that end it.
    """
    title, whole = told
    lines = ["---", yaml.safe_dump(dict(front), sort_keys=True).strip(), "---", "", f"# {name}", "", *words, ""]
    lines += ["| role | kind | name | sha256 |", "|---|---|---|---|"]
    lines += [f"| {parent.role} | {parent.kind} | {parent.name} | `{parent.digest}` |" for parent in parents]
    lines += ["", *rest, f"## {title}", "", "```json", json.dumps(whole, indent=2, sort_keys=True), "```", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def license_of(model: Path) -> dict[str, str]:
    """What the card or the config of a model says of its licence, in the words of a card's head."""
    card = model / "README.md"
    told: object = None
    if card.is_file():
        head = card.read_text(encoding="utf-8", errors="replace").split("---\n")
        try:
            told = yaml.safe_load(head[1]) if len(head) > 2 and not head[0].strip() else None
        except yaml.YAMLError:
            told = None
    if not isinstance(told, dict) or "license" not in told:
        told = json.loads((model / "config.json").read_text(encoding="utf-8"))
    keys = ("license", "license_name", "license_link")
    return {key: str(told[key]) for key in keys if isinstance(told, dict) and isinstance(told.get(key), str)}
