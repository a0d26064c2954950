"""Merges whose result is an adapter: a PEFT folder, found matrix by matrix as thin factors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelworks.core.errors import Invalid
from modelworks.core.nouns import JsonObject, Parent
from modelworks.merge.card import write_card
from modelworks.merge.engine import Pace, one_thread, worker_count
from modelworks.merge.factors import Factors
from modelworks.merge.findings import Findings, Seen
from modelworks.merge.fit import MERGEABLE
from modelworks.merge.lora import PREFIX, LowRank
from modelworks.merge.pieces import Pieces, StepLook, Watch
from modelworks.merge.plan import Plan, Step
from modelworks.merge.report import REPORT
from modelworks.merge.workers import share_out
from modelworks.weights.layout import inspect_adapter
from modelworks.weights.reader import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

_MOST_CARD_ROWS = 400


class AdapterFindings(Findings):
    """How well the factors stand for what was asked, and how far the models are from the base and each other."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._sizes = {step.output.name: step.elements for step in plan.steps}
        self._order = {step.output.name: place for place, step in enumerate(plan.steps)}
        self._rows: dict[str, JsonObject] = {}
        self._left_out: dict[str, float] = {}

    def note(self, step: Step, products: Sequence[Sequence[float]], made: Factors | None) -> None:
        """Args: products: (M, M), of the models' changes of this tensor; made: None where it has no part."""
        seen = Seen(elements=step.elements)
        for one, other in product(range(len(step.sources)), repeat=2):
            seen.products[step.sources[one].expert, step.sources[other].expert] = products[one][other]
        name = step.output.name
        self._seen[name] = seen
        if made is None:
            self._left_out[name] = sum(row[place] for place, row in enumerate(products)) ** 0.5
        else:
            norm = max(0.0, float(gram([made])[0, 0])) ** 0.5
            self._rows[name] = {"matrix": name, "rank": made.rank, "relative_error": made.error, "norm": norm}

    def table(self) -> list[JsonObject]:
        """Nothing: there is no merged tensor to compare with the base."""
        return []

    @property
    def matrices(self) -> list[JsonObject]:
        """One row a matrix: rank, the norm of its change, and what that leaves out, relative to the whole."""
        return [self._rows[name] for name in sorted(self._rows, key=self._order.__getitem__)]

    @property
    def left_out(self) -> dict[str, float]:
        """The tensors that were changed but have no part in the adapter, and the norms of their changes."""
        return {name: norm for name, norm in sorted(self._left_out.items()) if norm}

    @property
    def relative_error(self) -> float:
        """Of the whole adapter: the norm of all that is left out, relative to that of all that was to be kept."""
        whole = missing = sum(norm**2 for norm in self._left_out.values())
        for row in self._rows.values():
            norm, error = float(str(row["norm"])) ** 2, float(str(row["relative_error"])) ** 2
            whole += norm / (1 - error) if error < 1 else norm
            missing += norm * error / (1 - error) if error < 1 else norm
        return (missing / whole) ** 0.5 if whole else 0.0

    def as_json(self) -> JsonObject:
        return {
            "relative_error": self.relative_error,
            **super().as_json(),
            "matrices": list(self.matrices),
            "left_out": dict(self.left_out),
        }


def merge_adapters(
    folder: Path, plan: Plan, watch: Watch, pace: Pace, name: str, parents: Sequence[Parent], recipe: JsonObject
) -> AdapterFindings:
    """Write an adapter into the empty `folder`.

    Every worker holds one matrix in full where the models are full ones; of adapters only the factors.
    """
    work, made, done = _Work(plan), dict[str, Factors](), 0

    def take(step: Step, found: _Found | None) -> None:
        nonlocal done
        if found is not None:
            factors = found.factors()
            work.findings.note(step, found.products, factors)
            made.update({step.output.name: factors} if factors else {})
        done += step.output.size_bytes
        watch.progress(done, plan.size_bytes, "bytes", stage="merging", tensor=step.output.name)

    steps = sorted(plan.steps, key=lambda step: -step.elements)
    with one_thread(), ExitStack() as stack:
        work.pieces = Pieces(plan, watch, pace.device, stack)
        share_out(worker_count(pace, plan), steps, work.run, take, watch.check)
    _write_adapter(folder, plan, made)
    (folder / REPORT).write_text(json.dumps(work.findings.as_json(), indent=2) + "\n", encoding="utf-8")
    write_card(folder, name, plan, parents, recipe, list(_card_lines(work.findings)))
    return work.findings


def adapter_facts(plan: Plan, folder: Path) -> JsonObject:
    base = plan.frame
    return inspect_adapter(folder) | {"base": base.id, "base_name": base.name, "base_digest": base.digest}


def gram(parts: Sequence[Factors]) -> Tensor:
    """The inner products of changes, (M, M) float64, from their factors alone."""
    import torch

    lefts, rights = ([getattr(part, side).double() for part in parts] for side in ("left", "right"))
    return torch.stack([
        torch.stack([((one.T @ other) * (mine @ its.T)).sum() for other, its in zip(lefts, rights, strict=True)])
        for one, mine in zip(lefts, rights, strict=True)
    ])  # fmt: skip


class _Matrix:
    """One matrix and its changes, read when asked for."""

    def __init__(self, pieces: Pieces, step: Step, labels: Sequence[str]) -> None:
        self.name = step.output.name
        self._pieces, self._step, self._labels = pieces, step, labels

    def factors(self) -> Sequence[Factors]:
        return self._factors

    @cached_property
    def _factors(self) -> list[Factors]:
        import torch

        rows, columns = self._step.output.shape
        found = []
        for source in self._step.sources:
            left, right = self._pieces.factors(source) or (torch.zeros(rows, 0), torch.zeros(0, columns))
            found.append(Factors(self._sound(left, source.expert), self._sound(right, source.expert)))
        return found

    def delta(self, place: int) -> Tensor:
        return self._sound(self._deltas[place], place).view(self._step.output.shape)

    @cached_property
    def _deltas(self) -> Tensor:
        return self._pieces.read(self._step, 0, self._step.elements).deltas

    def products(self, of_factors: bool) -> Tensor:
        if of_factors:
            return gram(self._factors)
        deltas = self._deltas.double()
        return deltas @ deltas.T

    def _sound(self, values: Tensor, expert: int) -> Tensor:
        if not values.isfinite().all():
            raise Invalid(f"{self._labels[expert]}: {self.name} holds NaN or infinite values; mend the model")
        return values


@dataclass(frozen=True, slots=True)
class _Found:
    """What is learned of one tensor, as it goes from one process to another: tensors as arrays."""

    products: list[list[float]]
    # left, right and error of its factors; None where it has no part.
    parts: tuple[Any, Any, float] | None

    def factors(self) -> Factors | None:
        import torch

        return self.parts and Factors(torch.from_numpy(self.parts[0]), torch.from_numpy(self.parts[1]), self.parts[2])


class _Work:
    """`run` is called in several processes."""

    def __init__(self, plan: Plan) -> None:
        self.findings = AdapterFindings(plan)
        self.pieces: Pieces
        self._plan = plan

    def run(self, step: Step) -> _Found | None:
        import torch

        if step.merged:
            return self._factor(step)
        if step.output.dtype not in MERGEABLE:
            return None
        products = torch.zeros(len(step.sources), len(step.sources), dtype=torch.float64)
        for piece in StepLook(self.pieces, step).pieces():
            deltas = piece.deltas.double()
            products += (deltas @ deltas.T).cpu()
        return _Found(products.tolist(), None)

    def _factor(self, step: Step) -> _Found:
        method = self._plan.method
        matrix = _Matrix(self.pieces, step, self.findings.labels)
        self.pieces.watch.check()
        if method.factor is None:
            raise TypeError(f"{method.name} makes no adapters")
        made = method.factor(matrix, step.params, step.each)
        left, right = (part.cpu().contiguous().numpy() for part in (made.left, made.right))
        return _Found(matrix.products(method.adapters_only).tolist(), (left, right, made.error))


def _write_adapter(folder: Path, plan: Plan, made: Mapping[str, Factors]) -> None:
    import torch
    from safetensors.torch import save_file

    dtype = getattr(torch, plan.dtype or "float32")
    tensors: dict[str, Tensor] = {}
    for name, factors in sorted(made.items()):
        for part, values in _parts(plan, name, factors):
            tensors[part] = values.to(dtype).contiguous()
            if not tensors[part].isfinite().all():
                raise Invalid(f"{part} is not finite as {dtype}; lower the weights, or choose dtype float32")
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(_config(plan, made), indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _parts(plan: Plan, name: str, factors: Factors) -> Iterator[tuple[str, Tensor]]:
    """Under the names that PEFT gives them."""
    module = f"{PREFIX}{name.removesuffix('.weight')}"
    changes = [(expert.changes or {}).get(name) for expert in plan.experts]
    if any(isinstance(change, LowRank) and change.transposed for change in changes):
        yield f"{module}.lora_embedding_A", factors.left.T
        yield f"{module}.lora_embedding_B", factors.right.T
    else:
        yield f"{module}.lora_A.weight", factors.right
        yield f"{module}.lora_B.weight", factors.left


def _config(plan: Plan, made: Mapping[str, Factors]) -> dict[str, Any]:
    """Of scale 1 everywhere: the scales are in the factors. Ranks differ by pattern, as PEFT reads it."""
    ranks = {name.removesuffix(".weight"): factors.rank for name, factors in made.items()}
    most = max(ranks.values())
    patterns = {module: rank for module, rank in sorted(ranks.items()) if rank != most}
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": plan.frame.name,
        "r": most, "lora_alpha": most, "rank_pattern": patterns, "alpha_pattern": patterns,
        "target_modules": _targets(plan, ranks), "modules_to_save": None, "bias": "none", "fan_in_fan_out": False,
        "use_rslora": False, "use_dora": False, "init_lora_weights": True, "lora_dropout": 0.0, "inference_mode": True,
    }  # fmt: skip


def _targets(plan: Plan, ranks: Mapping[str, int]) -> list[str]:
    """By the last part of their names where that means no other module, and else by whole names."""
    assert plan.base is not None
    modules = {
        name.removesuffix(".weight") for name, info in plan.base.tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2
    }  # fmt: skip
    short = {module.rpartition(".")[2] for module in ranks}
    return sorted(ranks if any(module.rpartition(".")[2] in short for module in modules - ranks.keys()) else short)


def _card_lines(findings: AdapterFindings) -> Iterator[str]:
    yield from ("## What it stands for", "", f"Relative error of the whole: {findings.relative_error:.4g}.", "")
    yield from ("| matrix | rank | relative error | norm |", "|---|---|---|---|")
    for row in findings.matrices[:_MOST_CARD_ROWS]:
        yield f"| {row['matrix']} | {row['rank']} | {row['relative_error']:.4g} | {row['norm']:.4g} |"
    if findings.left_out:
        yield from ("", "Changed in the models, and not in this adapter:", "", "| tensor | norm |", "|---|---|")
        yield from (f"| {name} | {norm:.4g} |" for name, norm in findings.left_out.items())
    yield ""
