"""The engine: streams every tensor piece by piece from all models into a sink, in several processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from modelworks.core.errors import Invalid, Problem, Unsupported
from modelworks.merge.arrays import Array, as_tensor, is_numpy, rounded
from modelworks.merge.findings import Findings, Seen, samples
from modelworks.merge.method import Combine, Piece
from modelworks.merge.pieces import ModelLook, Pieces, StepLook, Watch, needs_torch
from modelworks.merge.plan import Plan, Step
from modelworks.merge.workers import MOST_WORKERS, cores, share_out
from modelworks.weights.loading import keep_freed_memory
from modelworks.weights.reader import DTYPES

# With a few models, float32 and scratch this stays near the processor's cache; a GPU wants fewer, larger transfers.
CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}
# A smaller merge is over before it is shared out.
SHARED_BYTES = 64 << 20
# Blocks of this size are given back when they are free: kept, they would scatter over the heap.
LARGEST_KEPT_BYTES = 32 << 20


class Sink(Protocol):
    """Where the result goes: files, or memory."""

    def write(self, name: str, tensor: Any, start: int) -> None:
        """Take contiguous elements of the planned dtype, from element `start` on: a CPU tensor, or their bytes.

        Called from several processes, forks of the one that asks for the result.
        """


@dataclass(frozen=True, slots=True)
class Pace:
    """How to work: none of it changes the result."""

    device: str = "cpu"
    workers: int = 0  # 0: one a core
    chunk_elements: int = 0  # 0: by the device
    report: Literal["sample", "full", "none"] = "sample"


def merge(
    plan: Plan,
    sink: Sink,
    watch: Watch,
    pace: Pace = Pace(),
    finished: Collection[str] = frozenset(),
    each_tensor: Callable[[str], None] = lambda _name: None,
) -> Findings:
    """Merge everything but the tensors that are `finished`, and tell of each tensor when its last piece is written.

    Memory is bounded by the number of workers and models times the size of a piece, whatever the size of the models,
    unless the method takes whole tensors.

    Raises:
        Invalid: a result is not finite.
        Unsupported: the method makes an adapter.
        Cancelled: as the watch says.
    """
    if plan.method.gives_adapter:
        raise Unsupported(
            f"{plan.method.name} makes an adapter, not a model; merge into a name or a folder, and load that"
        )
    engine = _Engine(plan, sink, watch, pace)
    # The largest first: none of them is left alone at the end.
    steps = sorted((s for s in plan.steps if s.output.name not in finished), key=lambda step: -step.elements)
    keep_freed_memory(LARGEST_KEPT_BYTES)
    done = plan.size_bytes - sum(step.output.size_bytes for step in steps)

    def take(step: Step, seen: Seen | None) -> None:
        nonlocal done
        engine.findings.take(step.output.name, seen)
        done += step.output.size_bytes
        watch.progress(done, plan.size_bytes, "bytes", stage="merging", tensor=step.output.name)
        each_tensor(step.output.name)

    with one_thread(needs_torch(plan, pace.device)), ExitStack() as stack:
        engine.open(stack)
        share_out(worker_count(pace, plan), steps, engine.run, take, watch.check)
    return engine.findings


class _Engine:
    """One merge; `run` is called in several processes."""

    def __init__(self, plan: Plan, sink: Sink, watch: Watch, pace: Pace) -> None:
        self.plan, self.sink, self.watch, self.pace = plan, sink, watch, pace
        self.findings = Findings(plan)
        self._whole_model: Combine | None = None

    def open(self, stack: ExitStack) -> None:
        self._pieces = Pieces(self.plan, self.watch, self.pace.device, stack)
        usual = self._pieces.look_elements if self._pieces.in_numpy else CHUNK_ELEMENTS[self.pace.device]
        self._chunk = self.pace.chunk_elements or usual
        method, steps = self.plan.method, [step for step in self.plan.steps if step.merged]
        if method.prepare_model is not None and steps:
            look = ModelLook(self._pieces)
            self._whole_model = method.prepare_model(look, steps[0].params, len(self.plan.experts))

    def run(self, step: Step) -> Seen | None:
        """Merge one tensor; return what was seen of it."""
        combine = self._whole_model
        look = StepLook(self._pieces, step)
        if step.merged and combine is None:
            combine = self.plan.method.begin(look, step.params, step.each)
        for start, stop in self._pieces.spans(step, self._chunk):
            if step.merged and combine is not None:
                made = self._merged(step, look.last(start, stop), combine)
            else:
                made = self._pieces.copied(step, start, stop)
            self.sink.write(step.output.name, made.data.cast("B") if is_numpy(made) else made, start)
        return self.findings.seen(step.output.name)

    def _merged(self, step: Step, piece: Piece, combine: Combine) -> Array:
        merged = combine(piece)
        if self.plan.method.space == "delta" and is_numpy(merged):
            piece.add_base(merged)
        elif self.plan.method.space == "delta":
            merged = piece.base + merged
        made = self._rounded(step, piece, merged)
        if step.base is not None:
            for first, last in samples(step.elements, piece.start, piece.start + len(merged), self.pace.report):
                span = piece.start + first, piece.start + last
                base = None if self.plan.method.needs_base else self._pieces.values(step.base, *span)
                self.findings.look(step, piece.part(first, last, base), merged[first:last])
        return made

    def _rounded(self, step: Step, piece: Piece, merged: Array) -> Array:
        """What is written, once it is known to be finite."""
        if is_numpy(merged):
            stored, finite = rounded(merged, step.output.dtype)
            if finite:
                return stored
            merged = as_tensor(merged, "F32")
        import torch

        made = merged.to(getattr(torch, DTYPES[step.output.dtype][0])).cpu()
        # The extremes are found many times faster than a mask; a NaN is passed on by both.
        if not made.numel() or all(torch.isfinite(extreme) for extreme in torch.aminmax(made)):
            return made
        bad = torch.nonzero(~torch.isfinite(made)).view(-1)
        _, models = self._pieces.at_hand(step, piece.start, piece.start + len(made))
        guilty = [self.findings.labels[source.expert] for row, source in zip(models, step.sources, strict=True)
                  if not torch.from_numpy(row).isfinite().all()]  # fmt: skip
        where = f"they are in {', '.join(guilty)}" if guilty else "no model has any, so they come from the merge"
        what = f"{len(bad)} values are NaN or infinite, the first at element {piece.start + int(bad[0])}; {where}"
        remedy = "mend the model, lower the weights, or choose dtype float32"
        problem = Problem(step.output.name, what, remedy, "not_finite")
        raise Invalid(str(problem), problems=(problem,))


def worker_count(pace: Pace, plan: Plan) -> int:
    if pace.device == "cuda":
        return 1
    return pace.workers or (min(cores(), MOST_WORKERS) if plan.size_bytes >= SHARED_BYTES else 1)


@contextmanager
def one_thread(by_torch: bool = True) -> Iterator[None]:
    """Let torch, if it computes at all, do so on one thread: our own processes each take a tensor.

    Where others compute as well, threads that wait for each other take a hundred times as long.
    """
    if not by_torch:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
