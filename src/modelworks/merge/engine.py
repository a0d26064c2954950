"""The engine: streams every tensor piece by piece from all models into a sink, in several processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from modelworks.core.errors import Invalid, Problem, Unsupported
from modelworks.merge.findings import Findings, Seen, samples
from modelworks.merge.method import Combine, Piece
from modelworks.merge.pieces import ModelLook, Pieces, StepLook, Watch
from modelworks.merge.plan import Plan, Step
from modelworks.merge.workers import MOST_WORKERS, cores, share_out
from modelworks.weights.loading import keep_freed_memory
from modelworks.weights.reader import DTYPES

if TYPE_CHECKING:
    from torch import Tensor

# With a few models, float32 and scratch this stays near the processor's cache; a GPU wants fewer, larger transfers.
CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}
# A smaller merge is over before it is shared out.
SHARED_BYTES = 64 << 20
# Blocks of this size are given back when they are free: kept, they would scatter over the heap.
LARGEST_KEPT_BYTES = 32 << 20


class Sink(Protocol):
    """Where the result goes: files, or the memory of a model that is being served."""

    @property
    def shared(self) -> bool:
        """Whether what a fork of this process writes is there for all."""

    def write(self, name: str, tensor: Tensor, start: int) -> None:
        """Take contiguous elements of the planned dtype, from element `start` on. Called from several processes."""


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

    with one_thread(), ExitStack() as stack:
        engine.open(stack)
        share_out(worker_count(pace, plan, sink), steps, engine.run, take, watch.check)
    return engine.findings


class _Engine:
    """One merge; `run` is called in several processes."""

    def __init__(self, plan: Plan, sink: Sink, watch: Watch, pace: Pace) -> None:
        self.plan, self.sink, self.watch, self.pace = plan, sink, watch, pace
        self.findings = Findings(plan)
        self._chunk = pace.chunk_elements or CHUNK_ELEMENTS[pace.device]
        self._whole_model: Combine | None = None

    def open(self, stack: ExitStack) -> None:
        self._pieces = Pieces(self.plan, self.watch, self.pace.device, stack)
        method, steps = self.plan.method, [step for step in self.plan.steps if step.merged]
        if method.prepare_model is not None and steps:
            look = ModelLook(self._pieces)
            self._whole_model = method.prepare_model(look, steps[0].params, len(self.plan.experts))

    def run(self, step: Step) -> Seen | None:
        """Merge one tensor; return what was seen of it."""
        combine = self._whole_model
        if step.merged and combine is None:
            combine = self.plan.method.begin(StepLook(self._pieces, step), step.params, step.each)
        for start, stop in self._pieces.spans(step, self._chunk):
            self.sink.write(step.output.name, self._piece(step, start, stop, combine), start)
        return self.findings.seen(step.output.name)

    def _piece(self, step: Step, start: int, stop: int, combine: Combine | None) -> Tensor:
        import torch

        pieces = self._pieces
        dtype = getattr(torch, DTYPES[step.output.dtype][0])
        if not step.merged or combine is None:
            return pieces.stored(step.base or step.sources[0], start, stop).to(dtype)
        piece = pieces.read(step, start, stop)
        combined = combine(piece)
        merged = piece.base + combined if self.plan.method.space == "delta" else combined
        result: Tensor = merged.to(dtype).cpu()
        self._check_finite(step, piece, result)
        if step.base is not None:
            for first, last in samples(step.elements, start, stop, self.pace.report):
                base = None if self.plan.method.needs_base else pieces.values(step.base, start + first, start + last)
                self.findings.look(step, piece.part(first, last, base), merged[first:last])
        return result

    def _check_finite(self, step: Step, piece: Piece, result: Tensor) -> None:
        import torch

        # The extremes are found many times faster than a mask; a NaN is passed on by both.
        if not result.numel() or all(torch.isfinite(extreme) for extreme in torch.aminmax(result)):
            return
        bad = torch.nonzero(~torch.isfinite(result)).view(-1)
        labels = self.findings.labels
        guilty = [labels[source.expert] for row, source in zip(piece.models, step.sources, strict=True)
                  if not torch.isfinite(row).all()]  # fmt: skip
        where = f"they are in {', '.join(guilty)}" if guilty else "no model has any, so they come from the merge"
        what = f"{len(bad)} values are NaN or infinite, the first at element {piece.start + int(bad[0])}; {where}"
        remedy = "mend the model, lower the weights, or choose dtype float32"
        problem = Problem(step.output.name, what, remedy, "not_finite")
        raise Invalid(str(problem), problems=(problem,))


def worker_count(pace: Pace, plan: Plan, sink: Sink | None = None) -> int:
    if pace.device == "cuda" or (sink is not None and not sink.shared):
        return 1
    return pace.workers or (min(cores(), MOST_WORKERS) if plan.size_bytes >= SHARED_BYTES else 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: pieces are short, and our own processes each take a tensor.

    Where others compute as well, threads that wait for each other take a hundred times as long.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
