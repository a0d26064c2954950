"""The engine: streams every tensor piece by piece from all models into a sink, on several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal, Protocol

from modelworks.core.errors import Invalid, Problem, Unsupported
from modelworks.merge.findings import Findings, samples
from modelworks.merge.method import Combine, Piece
from modelworks.merge.pieces import ModelLook, Pieces, StepLook, Watch
from modelworks.merge.plan import Plan, Step
from modelworks.weights.loading import keep_freed_memory
from modelworks.weights.reader import DTYPES

if TYPE_CHECKING:
    from torch import Tensor

# With a few models, float32 and scratch this stays near the processor's cache; a GPU wants fewer, larger transfers.
CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}
MOST_THREADS = 8
# Blocks of this size are given back when they are free: kept, they would scatter over the heap.
LARGEST_KEPT_BYTES = 32 << 20


class Sink(Protocol):
    """Where the result goes: files, or the memory of a model that is being served."""

    def write(self, name: str, tensor: Tensor, start: int) -> None:
        """Take contiguous elements of the planned dtype, from element `start` on. Called from several threads."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How to work: none of it changes the result."""

    device: str = "cpu"
    threads: int = 0  # 0: one for two cores
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

    Memory is bounded by the number of threads and models times the size of a piece, whatever the size of the models,
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
    with one_thread_each(), ExitStack() as stack:
        engine.open(stack)
        engine.done = plan.size_bytes - sum(step.output.size_bytes for step in steps)
        on_threads(pace, steps, engine.run, each_tensor)
    return engine.findings


class _Engine:
    """One merge; `run` is called from several threads."""

    def __init__(self, plan: Plan, sink: Sink, watch: Watch, pace: Pace) -> None:
        self.plan, self.sink, self.watch, self.pace = plan, sink, watch, pace
        self.findings = Findings(plan)
        self.done = 0
        self._lock = threading.Lock()
        self._mine = threading.local()
        self._chunk = pace.chunk_elements or CHUNK_ELEMENTS[pace.device]
        self._whole_model: Combine | None = None

    def open(self, stack: ExitStack) -> None:
        self._stack = stack
        method, steps = self.plan.method, [step for step in self.plan.steps if step.merged]
        if method.prepare_model is not None and steps:
            look = ModelLook(self._pieces())
            self._whole_model = method.prepare_model(look, steps[0].params, len(self.plan.experts))

    def run(self, step: Step) -> str:
        pieces = self._pieces()
        method = self.plan.method
        combine = self._whole_model
        if step.merged and combine is None:
            combine = method.begin(StepLook(pieces, step), step.params, step.each)
        for start, stop in pieces.spans(step, self._chunk):
            self.sink.write(step.output.name, self._piece(pieces, step, start, stop, combine), start)
        with self._lock:
            self.done += step.output.size_bytes
            self.watch.progress(self.done, self.plan.size_bytes, "bytes", stage="merging", tensor=step.output.name)
        return step.output.name

    def _piece(self, pieces: Pieces, step: Step, start: int, stop: int, combine: Combine | None) -> Tensor:
        import torch

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

    def _pieces(self) -> Pieces:
        if not hasattr(self._mine, "pieces"):
            with self._lock:
                self._mine.pieces = Pieces(self.plan, self.watch, self.pace.device, self._stack)
        pieces: Pieces = self._mine.pieces
        return pieces

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


def thread_count(pace: Pace) -> int:
    # Python's lock goes from hand to hand between pieces: on two cores a second thread costs more than it brings.
    return 1 if pace.device == "cuda" else pace.threads or min(max(_cores() // 2, 1), MOST_THREADS)


def on_threads(pace: Pace, steps: list[Step], work: Callable[[Step], str], each_tensor: Callable[[str], None]) -> None:
    """Do the work of every step, and tell of each when it is done."""
    threads = thread_count(pace)
    if threads == 1:
        for step in steps:
            each_tensor(work(step))
        return
    with ThreadPoolExecutor(threads, "merge") as pool:
        waiting = iter(steps)
        going = {pool.submit(work, step) for step in islice(waiting, 2 * threads)}
        try:
            while going:
                ended, going = wait(going, return_when=FIRST_COMPLETED)
                for future in ended:
                    each_tensor(future.result())
                    going |= {pool.submit(work, step) for step in islice(waiting, 1)}
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let torch compute on one thread: pieces are short, and our own threads each take a tensor."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
