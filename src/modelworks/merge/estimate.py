"""What a merge will take, by its plan alone: bytes, seconds and memory; nothing is read and torch is not loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelworks.core.config import count_gpus
from modelworks.merge.engine import CHUNK_ELEMENTS, Pace, worker_count
from modelworks.merge.pieces import needs_torch
from modelworks.merge.plan import Plan, Source, Step
from modelworks.weights.reader import DTYPES

# Measured on two busy workers of one 2024 server core, models in bfloat16, files in the page cache.
# Whether torch and what it loads is gone through, which takes longer than a small merge.
_START_SECONDS = {True: 1.8, False: 0.7}
_START_BYTES = {True: 280 << 20, False: 120 << 20}
_READ_BYTES_PER_SECOND = 4e9
_WRITE_BYTES_PER_SECOND = 1.2e9
# One thread, for an element of a model or of a base that is read; of methods not named here, the first.
_NANOSECONDS: Mapping[str, float] = {
    "": 2, "slerp": 5, "nuslerp": 7, "multislerp": 7, "karcher": 5, "model_stock": 6, "magmax": 5, "consensus": 5,
    "ramplus_tl": 7, "dare_linear": 4, "dare_ties": 4, "ties": 4, "breadcrumbs": 6, "breadcrumbs_ties": 7,
    "ties_merging": 16, "ties_merging_dare": 22, "mask_merging": 30, "arcee_fusion": 14, "sce": 25, "della": 28,
    "della_linear": 25, "pcb": 50, "iso_c": 60, "tsv_m": 220,
}  # fmt: skip
# Pieces in float32 at once, beside one for each model.
_SCRATCH = 6


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a merge does and takes. Seconds and memory are rough: within a factor of two on a machine at rest."""

    method: str
    models: int
    tensors_merged: int
    tensors_copied: int
    parameters: int
    dtype: str
    device: str
    workers: int
    bytes_read: int
    bytes_written: int
    seconds: float
    memory_bytes: int
    # What is doubtful, or has no effect.
    notes: tuple[str, ...] = ()


def estimate(plan: Plan, workers: int, device: str, notes: Sequence[str] = ()) -> Estimate:
    """Args: workers: 0 for as many as there are cores; device: auto is the GPU that the driver lists, or the CPU."""
    device = ("cuda" if count_gpus() else "cpu") if device == "auto" else device
    workers = worker_count(Pace(device, workers), plan)
    merged = [step for step in plan.steps if step.merged]
    read = sum(_bytes_read(plan, step) for step in plan.steps)
    values = sum(step.elements * len(_inputs(plan, step)) for step in merged)
    computing = values * _NANOSECONDS.get(plan.method.name, _NANOSECONDS[""]) / 1e9 / workers
    moving = read / _READ_BYTES_PER_SECOND + plan.size_bytes / _WRITE_BYTES_PER_SECOND
    by_torch = needs_torch(plan, device)
    piece = max((step.elements for step in merged), default=0)
    piece = piece if plan.method.whole else min(piece, CHUNK_ELEMENTS[device])
    return Estimate(
        method=plan.method.name,
        models=len(plan.experts),
        tensors_merged=len(merged),
        tensors_copied=len(plan.steps) - len(merged),
        parameters=sum(step.elements for step in plan.steps),
        dtype=plan.dtype or _dtype_of(plan),
        device=device,
        workers=workers,
        bytes_read=read,
        bytes_written=plan.size_bytes,
        seconds=round(_START_SECONDS[by_torch] + computing + moving, 1),
        notes=(*notes, *plan.warnings),
        memory_bytes=_START_BYTES[by_torch] + workers * piece * 4 * (len(plan.experts) + _SCRATCH),
    )


def _inputs(plan: Plan, step: Step) -> list[Source]:
    """What is read to merge a tensor."""
    reads_base = plan.method.needs_base or plan.method.reads_base
    return [*step.sources, *([step.base] if step.base is not None and reads_base else [])]


def _bytes_read(plan: Plan, step: Step) -> int:
    if not step.merged:
        return step.output.size_bytes
    sizes = (plan.expert(source).tensors[source.tensor].size_bytes for source in _inputs(plan, step))
    return plan.method.reads * sum(sizes)


def _dtype_of(plan: Plan) -> str:
    """The dtype that most of the result has."""
    sizes = Counter[str]()
    for step in plan.steps:
        sizes[step.output.dtype] += step.elements
    return DTYPES[sizes.most_common(1)[0][0]][0]
