"""What a merge learns of its models on the way: how far they are from the base and from each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from modelworks.core.nouns import JsonObject
from modelworks.merge.arrays import Array, library
from modelworks.merge.fit import Expert
from modelworks.merge.layers import layer_of

if TYPE_CHECKING:
    from modelworks.merge.method import Piece
    from modelworks.merge.plan import Plan, Step


# A sample is one of so many blocks of so many elements, spread evenly: the same whatever the pieces of the merge.
SAMPLE_STRIDE = 32
SAMPLE_ELEMENTS = 1 << 15


def samples(
    elements: int, start: int, stop: int, report: Literal["sample", "full", "none"]
) -> Iterator[tuple[int, int]]:
    """The parts to look at of the piece from `start` to `stop` of a tensor, counted from the piece's own start."""
    if report == "full":
        yield 0, stop - start
    elif report == "sample":
        blocks = -(-elements // SAMPLE_ELEMENTS)
        for block in range(start // SAMPLE_ELEMENTS, -(-stop // SAMPLE_ELEMENTS)):
            if block % SAMPLE_STRIDE == min(SAMPLE_STRIDE, blocks) // 2:
                first, last = block * SAMPLE_ELEMENTS, (block + 1) * SAMPLE_ELEMENTS
                yield max(first, start) - start, min(last, stop) - start


@dataclass
class Seen:
    """Sums over the elements of one tensor that were looked at."""

    elements: int = 0
    conflicts: int = 0  # changed by several models, in both directions
    shared: int = 0  # changed by several models
    kept: int = 0  # changed in the result
    products: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))  # d_i . d_j
    base_square: float = 0.0


class Findings:
    """Sums up what is seen of pieces. What was only sampled is scaled to the whole tensor."""

    def __init__(self, plan: Plan) -> None:
        self.labels = labels(plan.experts)
        self._sizes = {step.output.name: step.elements for step in plan.steps if step.merged}
        self._seen: dict[str, Seen] = {}

    def look(self, step: Step, piece: Piece, merged: Array) -> None:
        """Take in one piece and what it became."""
        lib = library(merged)
        deltas, base = (lib.asarray(values, dtype=lib.float64) for values in (piece.deltas, piece.base))
        products = lib.einsum("in,jn->ij", deltas, deltas).tolist()
        several = int(((deltas != 0).sum(0, dtype=lib.int16) > 1).sum())
        both = int(((deltas > 0).any(0) & (deltas < 0).any(0)).sum())
        kept = int(lib.count_nonzero(merged != piece.base))
        base_square = float((base * base).sum())
        seen = self._seen.setdefault(step.output.name, Seen())
        seen.elements += deltas.shape[1]
        seen.shared, seen.conflicts, seen.kept = seen.shared + several, seen.conflicts + both, seen.kept + kept
        seen.base_square += base_square
        for one, row in zip(step.sources, products, strict=True):
            for other, product in zip(step.sources, row, strict=True):
                seen.products[one.expert, other.expert] += product

    def seen(self, name: str) -> Seen | None:
        return self._seen.get(name)

    def take(self, name: str, seen: Seen | None) -> None:
        """Take in what another process saw of a tensor."""
        if seen is not None:
            self._seen[name] = seen

    @property
    def share_seen(self) -> float:
        """Of all elements that are merged; less where a killed run was gone on with."""
        whole = sum(self._sizes.values())
        return sum(seen.elements for seen in self._seen.values()) / whole if whole else 0.0

    def norms(self) -> dict[str, float]:
        """The length of every task vector."""
        products = self._products()
        return {
            label: float(f"{products[place, place] ** 0.5:.4g}")
            for place, label in enumerate(self.labels)
            if (place, place) in products
        }

    def cosines(self) -> dict[str, float]:
        """The cosine of every two task vectors."""
        products = self._products()
        found = {}
        for one, other in combinations(range(len(self.labels)), 2):
            lengths = products.get((one, one), 0.0) * products.get((other, other), 0.0)
            if lengths:
                cosine = products.get((one, other), 0.0) / lengths**0.5
                found[f"{self.labels[one]} / {self.labels[other]}"] = round(cosine, 4)
        return found

    def as_json(self) -> JsonObject:
        return {"task_vector_norms": dict(self.norms()), "cosines": dict(self.cosines())}

    def table(self) -> list[JsonObject]:
        """One row a layer (and one for all that is in none): norms relative to the base, conflicts, what is kept."""
        groups: dict[int, list[str]] = defaultdict(list)
        for name in self._sizes:
            if name in self._seen:
                layer = layer_of(name)
                groups[-1 if layer is None else layer].append(name)
        return [self._row("other" if layer < 0 else f"layer {layer}", names) for layer, names in sorted(groups.items())]

    def _row(self, group: str, names: list[str]) -> JsonObject:
        seen = [self._seen[name] for name in names]
        elements = sum(each.elements for each in seen)
        shared = sum(each.shared for each in seen)
        base = sum(each.base_square * self._scale(name) for name, each in zip(names, seen, strict=True)) ** 0.5
        products = self._products(names)
        norms: JsonObject = {
            label: round(products[place, place] ** 0.5 / base, 5) if base else 0.0
            for place, label in enumerate(self.labels)
            if (place, place) in products
        }
        return {
            "group": group,
            "relative_norms": norms,
            "sign_conflicts": round(sum(each.conflicts for each in seen) / shared, 4) if shared else 0.0,
            "kept": round(sum(each.kept for each in seen) / elements, 4) if elements else 0.0,
        }

    def _scale(self, name: str) -> float:
        return self._sizes[name] / max(self._seen[name].elements, 1)

    def _products(self, names: list[str] | None = None) -> dict[tuple[int, int], float]:
        total: dict[tuple[int, int], float] = defaultdict(float)
        for name in sorted(self._seen if names is None else names):
            for pair, product in self._seen[name].products.items():
                total[pair] += product * self._scale(name)
        return total


def labels(experts: tuple[Expert, ...]) -> list[str]:
    names = [expert.artifact.name for expert in experts]
    return [name if names.count(name) == 1 else f"{name} #{place}" for place, name in enumerate(names, 1)]
