"""A conversation with a merge in memory: its recipe is changed by /set and kept by /save."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import click
import yaml

from modelworks.cli.conversation import value_of
from modelworks.cli.options import Session
from modelworks.core.errors import Invalid, ModelworksError
from modelworks.core.ids import new_id

if TYPE_CHECKING:
    from modelworks.app.live import LiveMerge
    from modelworks.core.nouns import Job

ORDERS = "/set params.KEY VALUE or /set weights.0 VALUE merges anew, /recipe shows, /save NAME keeps it"


class Maker(Protocol):
    """Whoever has the engine."""

    def merge(self, body: Mapping[str, object]) -> LiveMerge: ...

    def queue(self, body: Mapping[str, object]) -> Job: ...


@dataclass
class LiveRecipe:
    """What the engine was last merged from; `name` is what it is served under."""

    session: Session
    maker: Maker
    name: str
    body: dict[str, Any]

    def make(self, body: dict[str, Any]) -> None:
        """Merge; the recipe stays as it was if this fails."""
        made = self.maker.merge(body | {"name": self.name})
        self.body = body
        for what, numbers in (("task vectors", made.task_vector_norms), ("cosines", made.cosines)):
            if numbers:
                self.session.say(f"  {what}: {', '.join(f'{key} {number:.4g}' for key, number in numbers.items())}")
        self.session.say(f"merged {made.tensors_merged} tensors in {made.seconds:.2f} s")

    def obey(self, line: str) -> bool:
        """Carry out an order; False where the line is none."""
        word, _, rest = line.partition(" ")
        order = {"/set": self._set, "/save": self._save, "/recipe": self._show}.get(word)
        if order is None:
            return False
        try:
            order(rest.strip())
        except ModelworksError as error:
            self.session.say(error.message)
        return True

    def _set(self, rest: str) -> None:
        path, _, text = rest.partition(" ")
        value = value_of(text)
        if not path or value is None:
            raise Invalid("write what to change and its new value, e.g. /set params.scaling_coefficient 0.5")
        self.make(changed(self.body, path, value))

    def _save(self, name: str) -> None:
        if not name:
            raise Invalid("write the name that the model shall have, e.g. /save me/both")
        job = self.maker.queue(self.body | {"name": name})
        self.session.say(f"job {job.id} makes {name}; follow it: modelworks jobs events {job.id} --follow")

    def _show(self, _rest: str) -> None:
        click.echo(yaml.safe_dump(self.body, sort_keys=False).rstrip())


def changed(body: Mapping[str, Any], path: str, value: object) -> dict[str, Any]:
    """A recipe with another value at a path like `params.density` or `weights.0`.

    Raises:
        Invalid: there is no such place.
    """
    found: dict[str, Any] = copy.deepcopy(dict(body))
    *way, last = path.split(".")
    if way and way[0] in {"weights", "model_params"} and found.get(way[0]) is None:
        found[way[0]] = [1.0 if way[0] == "weights" else {} for _ in found.get("models", ())]
    place: Any = found
    for part in way:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[_index(place, part, path)]
    place[last if isinstance(place, dict) else _index(place, last, path)] = value
    return found


def _index(place: object, part: str, path: str) -> int:
    if not isinstance(place, list | tuple):
        raise Invalid(f"{path}: there is nothing under {place!r}")
    if not part.isdigit() or int(part) >= len(place):
        raise Invalid(f"{path}: {part!r} is none of the places 0 to {len(place) - 1}")
    return int(part)


def live_name(body: Mapping[str, Any]) -> str:
    """A name of its own, so that two conversations do not change each other's weights."""
    wished = str(body.get("name") or body.get("base") or body.get("method") or "merge")
    return f"live/{wished.rstrip('/').rpartition('/')[2][:80]}-{new_id()[-6:]}"
