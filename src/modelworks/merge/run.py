"""The merge itself: streams every tensor piece by piece from all models into the result."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from modelworks.core.context import JobContext
from modelworks.core.errors import Invalid
from modelworks.core.nouns import ArtifactKind, Draft, JsonObject, Parent
from modelworks.merge.card import write_card
from modelworks.merge.method import Combine
from modelworks.merge.pieces import Pieces
from modelworks.merge.plan import Expert, Plan, Step, make_plan
from modelworks.merge.spec import MergeSpec
from modelworks.weights.layout import inspect_model
from modelworks.weights.loading import choose_device
from modelworks.weights.reader import DTYPES, INDEX
from modelworks.weights.safety import read_object
from modelworks.weights.writer import CheckpointWriter

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ELEMENTS = 1 << 18  # with a few models, float32 and scratch this stays near the processor's cache
_COPIED = frozenset({".json", ".jinja", ".model", ".txt"})


def run(spec: MergeSpec, job: JobContext, chunk_elements: int = CHUNK_ELEMENTS) -> JsonObject:
    """Merge and publish.

    Memory is bounded by the number of models times the size of a piece, whatever the size of the models.

    Raises:
        Invalid: the models do not fit together, or the result is not finite.
    """
    started = time.monotonic()
    plan = make_plan(spec, job.inputs)
    folder = job.stage("model")
    with ExitStack() as stack:
        stack.enter_context(_one_thread())
        merger = _Merger(plan, Pieces(plan, job, choose_device(spec.device), chunk_elements, stack))
        merger.write(folder, job)
    _copy_companions(plan.base.path, folder, plan.dtype)
    parents = _parents(spec, plan)
    name = spec.published_name
    recipe: JsonObject = {"kind": "merge", "spec": spec.model_dump(mode="json")}
    write_card(folder, name, plan, parents, recipe)
    size = sum(step.output.size_bytes for step in plan.steps)
    norms, cosines = merger.task_vectors() if spec.base else ({}, {})
    job.publish(
        Draft(
            kind=ArtifactKind.MODEL,
            name=name,
            folder=folder,
            facts=asdict(inspect_model(folder)),
            parents=parents,
            recipe=recipe,
            metrics={f"task_vector_norm/{model}": norm for model, norm in norms.items()},
            replace=spec.replace,
        )
    )
    return {
        "name": name,
        "seconds": round(time.monotonic() - started, 3),
        "bytes": size,
        "tensors": len(plan.steps),
        "tensors_merged": sum(step.merged for step in plan.steps),
        "task_vector_norms": dict(norms),
        "cosines": dict(cosines),
    }


class _Merger:
    """One merge, and what is learnt on the way."""

    def __init__(self, plan: Plan, pieces: Pieces) -> None:
        import torch

        self.plan = plan
        self.pieces = pieces
        count = len(plan.experts)
        self.products = torch.zeros(count, count, dtype=torch.float64)  # d_i . d_j over all merged elements

    def write(self, folder: Path, job: JobContext) -> None:
        total = sum(step.output.size_bytes for step in self.plan.steps)
        done = 0
        combine = self.plan.method.begin(self.pieces, self.plan.weights, self.plan.params)
        with CheckpointWriter(folder, [step.output for step in self.plan.steps]) as writer:
            for step in self.plan.steps:
                for start, stop in self.pieces.spans(step):
                    writer.write(step.source.name, self._piece(step, start, stop, combine), start)
                done += step.output.size_bytes
                job.progress(done, total, "bytes", stage="merging", tensor=step.source.name)

    def _piece(self, step: Step, start: int, stop: int, combine: Combine) -> Tensor:
        import torch

        name = step.source.name
        dtype = getattr(torch, DTYPES[step.output.dtype][0])
        if not step.merged:
            return self.pieces.stored(name, start, stop).to(dtype)
        piece = self.pieces.read(name, start, stop)
        deltas = piece.deltas.float()
        self.products += (deltas @ deltas.T).double().cpu()
        combined = combine(piece)
        merged = piece.base + combined if self.plan.method.space == "delta" else combined
        result: Tensor = merged.to(dtype).cpu()
        _check_finite(result, name, start)
        return result

    def task_vectors(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the length of every task vector, and the cosine of every two."""
        names = _labels(self.plan.experts)
        lengths = self.products.diagonal().sqrt().tolist()
        norms = {name: float(f"{length:.4g}") for name, length in zip(names, lengths, strict=True)}
        cosines = {}
        for i, j in combinations(range(len(names)), 2):
            if lengths[i] and lengths[j]:
                cosine = self.products[i, j].item() / (lengths[i] * lengths[j])
                cosines[f"{names[i]} / {names[j]}"] = round(cosine, 4)
        return norms, cosines


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: pieces are short and bound by memory, and threads that wait for each other cost more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_finite(result: Tensor, name: str, start: int) -> None:
    import torch

    # The extremes are found many times faster than a mask; a NaN is passed on by both.
    if not all(torch.isfinite(extreme) for extreme in torch.aminmax(result)):
        bad = torch.nonzero(~torch.isfinite(result)).view(-1)
        raise Invalid(
            f"{name}: {len(bad)} values are NaN or infinite, the first at element {start + int(bad[0])}; "
            "look for NaN in the models, lower the weights, or choose dtype float32"
        )


def _labels(experts: Sequence[Expert]) -> list[str]:
    names = [expert.artifact.name for expert in experts]
    return [name if names.count(name) == 1 else f"{name} #{place}" for place, name in enumerate(names, 1)]


def _copy_companions(source: Path, folder: Path, dtype: str | None) -> None:
    """Tokenizer, chat template, generation settings and config come from the base."""
    for path in sorted(source.iterdir()):
        wanted = path.suffix in _COPIED or path.name.upper().startswith(("LICENSE", "NOTICE"))
        if path.is_file() and wanted and path.name not in {"config.json", INDEX}:
            shutil.copyfile(path, folder / path.name)
    config = read_object(source / "config.json")
    if dtype is not None:
        # transformers 5 reads the first, 4 the second
        config |= {"dtype": dtype, "torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _parents(spec: MergeSpec, plan: Plan) -> tuple[Parent, ...]:
    roles = [("base", plan.base)] if spec.base else []
    experts = [("expert", expert.artifact) for expert in plan.experts]
    return tuple(Parent(role, item.kind, item.id, item.name, item.digest) for role, item in (*roles, *experts))
