"""The models of one merge, opened together and read in aligned pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from modelworks.core.errors import Unsupported
from modelworks.merge.arrays import KEPT_ELEMENTS, Array, bare, is_numpy, read_row, rounded
from modelworks.merge.lora import LowRankReader
from modelworks.merge.method import Piece
from modelworks.merge.plan import Plan, Source, Step, spans
from modelworks.weights.gguf_checkpoint import LINK, open_weights
from modelworks.weights.reader import DTYPES, Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Of the pieces of a look, so that what a method learns does not depend on the pieces of the merge.
LOOK_ELEMENTS = 1 << 18
# Of those of numpy's arrays: they stay nearer to the processor, and an operation costs less to begin.
NEAR_ELEMENTS = 1 << 17


class Watch(Protocol):
    """What a merge tells of itself, and asks at every piece; a JobContext is one."""

    def check(self) -> None:
        """Raise Cancelled if the merge is to stop."""

    def progress(self, done: float, total: float, unit: str, **facts: str | float) -> None: ...


def takes_numpy(plan: Plan, device: str) -> bool:
    """Whether the method is given numpy's arrays."""
    method = plan.method
    return device == "cpu" and all(method.in_numpy(step.params, step.each) for step in plan.steps if step.merged)


def needs_torch(plan: Plan, device: str) -> bool:
    """Whether a merge into files computes with torch: for the method, or for what is no plain safetensors file."""
    changed = any(expert.adapter is not None for expert in plan.experts) or (plan.vocabulary and plan.vocabulary.moves)
    folders = {plan.frame.path, *(expert.model.path for expert in plan.experts)}
    return not takes_numpy(plan, device) or bool(changed) or any((folder / LINK).is_symlink() for folder in folders)


class Pieces:
    """Reads the models of a plan. Not for several threads at once: each has its own."""

    def __init__(self, plan: Plan, watch: Watch, device: str, stack: ExitStack) -> None:
        self.plan = plan
        self.watch = watch
        self.in_numpy, self._plain = takes_numpy(plan, device), not needs_torch(plan, device)
        self.look_elements = NEAR_ELEMENTS if self.in_numpy else LOOK_ELEMENTS
        self._device = device
        self._open: dict[Path, Checkpoint] = {}
        self._low_rank: dict[int, LowRankReader] = {}
        for place, expert in enumerate(plan.experts):
            self._checkpoint(expert.model.path, stack)
            if expert.adapter is not None and expert.changes is not None:
                self._low_rank[place] = LowRankReader(self._checkpoint(expert.adapter.path, stack), expert.changes)
        self._checkpoint(plan.frame.path, stack)

    def _checkpoint(self, folder: Path, stack: ExitStack) -> Checkpoint:
        if folder not in self._open:
            self._open[folder] = stack.enter_context(open_weights(folder))
        return self._open[folder]

    def spans(self, step: Step, elements: int) -> Iterator[tuple[int, int]]:
        whole = self.plan.method.whole and step.merged and step.elements
        shape = (step.elements,) if self._plain else step.output.shape
        for span in [(0, step.elements)] if whole else spans(shape, elements):
            self.watch.check()
            yield span

    def stored(self, source: Source, start: int, stop: int) -> Tensor:
        """A run of a model's elements as they are stored; float32 where its rows are moved."""
        if source.aligned is not None:
            return self._aligned(source, start, stop, source.aligned)
        return self._open[self.plan.expert(source).model.path].read(source.tensor, start, stop)

    def _aligned(self, source: Source, start: int, stop: int, name: str) -> Tensor:
        vocabulary, experts = self.plan.vocabulary, (*filter(None, [self.plan.base]), *self.plan.experts)
        assert vocabulary is not None

        def stored(member: int, start: int, stop: int) -> Tensor:
            model = experts[member]
            return self._open[model.model.path].read(model.names[name], start, stop)

        info = self.plan.expert(source).tensors[source.tensor]
        member = source.expert + (self.plan.base is not None)
        return vocabulary.read(member, info.elements // max(info.shape[0], 1), start, stop, stored)

    def copied(self, step: Step, start: int, stop: int) -> Array:
        """A run of what is not merged, in the result's dtype."""
        source, dtype = step.base or step.sources[0], step.output.dtype
        checkpoint = self._open[self.plan.expert(source).model.path]
        if not self._plain:
            import torch

            return self.stored(source, start, stop).to(getattr(torch, DTYPES[dtype][0]))
        if checkpoint.tensors[source.tensor].dtype != dtype:
            return rounded(self.values(source, start, stop), dtype)[0]
        import numpy as np

        found = np.empty((stop - start) * DTYPES[dtype][1], np.uint8)
        checkpoint.read_into(source.tensor, start, found.data)
        return found

    def values(self, source: Source, start: int, stop: int) -> Array:
        """A run of a model's full weights, without its adapter, in the method's precision."""
        if self._plain:
            return self._rows([source], start, stop)[0]
        found = self._tensor(source, start, stop)
        return bare(found) if self.in_numpy else found

    def _tensor(self, source: Source, start: int, stop: int) -> Tensor:
        return self.stored(source, start, stop).to(self._device).to(self._dtype)

    def at_hand(self, step: Step, start: int, stop: int) -> tuple[Array | None, Array]:
        """The base, if there is one, and the models, all as numpy's float32."""
        base = None if step.base is None else self.values(step.base, start, stop)
        models = self._rows(step.sources, start, stop) if self._plain else self.read(step, start, stop).models
        found = [each if each is None or is_numpy(each) else each.float().cpu().numpy() for each in (base, models)]
        return found[0], found[1]

    def read(self, step: Step, start: int, stop: int) -> Piece:
        needed = self.plan.method.needs_base or self.plan.method.reads_base
        source = step.base if needed else None
        if not self._plain:
            tensor = None if source is None else self._tensor(source, start, stop)
            piece = self._read_by_torch(step, start, stop, tensor)
            return piece.map(bare) if self.in_numpy else piece
        if self.plan.method.space == "delta" and source is not None and self._all_bfloat16([source, *step.sources]):
            return Piece(
                step.output.name, step.output.shape, start, None, stored=self._bits(source, step.sources, start, stop)
            )
        base = None if source is None else self.values(source, start, stop)
        rows = self._rows(step.sources, start, stop)
        if self.plan.method.space == "weights":
            return Piece(step.output.name, step.output.shape, start, base, rows)
        rows -= base
        return Piece(step.output.name, step.output.shape, start, base, deltas=rows)

    def _all_bfloat16(self, sources: Sequence[Source]) -> bool:
        return all(
            self._open[self.plan.expert(source).model.path].tensors[source.tensor].dtype == "BF16" for source in sources
        )

    def _bits(self, base: Source, sources: Sequence[Source], start: int, stop: int) -> tuple[Array, Array]:
        """Base and models as they are stored, in bfloat16."""
        import numpy as np

        bits = np.empty((1 + len(sources), stop - start), np.uint16)
        for row, source in zip(bits, [base, *sources], strict=True):
            if len(row):
                self._open[self.plan.expert(source).model.path].read_into(source.tensor, start, row.data.cast("B"))
        return bits[0], bits[1:]

    def _rows(self, sources: Sequence[Source], start: int, stop: int) -> Array:
        import numpy as np

        rows = np.empty((len(sources), stop - start), np.float32)
        for row, source in zip(rows, sources, strict=True):
            read_row(self._open[self.plan.expert(source).model.path], source.tensor, start, row)
        return rows

    @cached_property
    def _dtype(self) -> torch.dtype:
        import torch

        found: torch.dtype = getattr(torch, self.plan.method.precision)
        return found

    def _read_by_torch(self, step: Step, start: int, stop: int, base: Tensor | None) -> Piece:
        import torch

        name, shape = step.output.name, step.output.shape
        rows = torch.empty(len(step.sources), stop - start, device=self._device, dtype=self._dtype)
        if not any(source.expert in self._low_rank for source in step.sources):
            for row, source in zip(rows, step.sources, strict=True):
                row.copy_(self.stored(source, start, stop))
            return Piece(name, shape, start, base, models=rows)
        deltas = torch.empty_like(rows) if base is not None else None
        for place, source in enumerate(step.sources):
            self._read_changed(step, source, start, stop, base, rows[place], None if deltas is None else deltas[place])
        return Piece(name, shape, start, base, rows, deltas)

    def factors(self, source: Source) -> tuple[Tensor, Tensor] | None:
        """Left and right of what an adapter adds to a tensor, scale and all; None where it adds nothing."""
        reader = self._low_rank.get(source.expert)
        found = None if reader is None else reader.factors(source.tensor)
        return None if found is None else (found[0].to(self._device), found[1].to(self._device))

    def _read_changed(
        self, step: Step, source: Source, start: int, stop: int, base: Tensor | None, row: Tensor, delta: Tensor | None
    ) -> None:
        """One model's values and differences, where at least one of the models is an adapter."""
        import torch

        reader = self._low_rank.get(source.expert)
        change = None if reader is None else reader.read(source.tensor, start, stop)
        change = None if change is None else change.to(self._device)
        on_base = step.base is not None and self._is_same(source, step.base)
        row.copy_(base if base is not None and on_base else self.stored(source, start, stop))
        if change is not None:
            row += change  # in float32, and rounded once
        elif reader is not None:
            reader.replace(source.tensor, start, stop, row)
        if delta is None or base is None:
            return
        if on_base and change is not None and self._dtype == torch.float32:
            delta.copy_(change)  # known more exactly than by subtracting again
        else:
            torch.sub(row, base, out=delta)

    def _is_same(self, one: Source, other: Source) -> bool:
        paths = self.plan.expert(one).model.path, self.plan.expert(other).model.path
        return one.tensor == other.tensor and paths[0] == paths[1]


class StepLook:
    """A TensorLook at the tensor of one step."""

    def __init__(self, pieces: Pieces, step: Step) -> None:
        self.name, self.shape, self.size = step.output.name, step.output.shape, step.elements
        self._pieces, self._step = pieces, step
        self._kept: dict[tuple[int, int], Piece] = {}

    def pieces(self, every: int = 1) -> Iterator[Piece]:
        spans = self._pieces.spans(self._step, self._pieces.look_elements)
        for span in islice(spans, 0, None, every):
            piece = self._kept.get(span) or self._pieces.read(self._step, *span)
            if self.size <= KEPT_ELEMENTS:
                self._kept[span] = piece
            yield piece

    def last(self, start: int, stop: int) -> Piece:
        """The same run for the last time, whether a look was made in such pieces or not."""
        return self._kept.pop((start, stop), None) or self._pieces.read(self._step, start, stop)


class ModelLook:
    """A Look at all tensors of a plan that are merged."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._steps = {step.output.name: step for step in pieces.plan.steps if step.merged}
        self.sizes = {name: step.elements for name, step in self._steps.items()}

    def pieces(self, name: str) -> Iterator[Piece]:
        # How often a method will look is not known, so this counts as nothing done yet.
        self._pieces.watch.progress(0, self._pieces.plan.size_bytes, "bytes", stage="looking", tensor=name)
        yield from StepLook(self._pieces, self._steps[name]).pieces()

    def in_model_order(self) -> Sequence[str]:
        """The tensors to be merged in the order of the network's own `named_parameters`.

        The files do not tell it, so the network's class is asked, which is built without weights.

        Raises:
            Unsupported: this architecture names its parameters otherwise than its files.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        plan = self._pieces.plan
        config = AutoConfig.from_pretrained(str(plan.frame.path), local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        names = [name for name, _ in network.named_parameters() if name in self.sizes]
        missing = sorted(self.sizes.keys() - set(names))
        if missing:
            raise Unsupported(
                f"{missing[0]} is no parameter of {type(network).__name__}, so its place among the random draws of "
                f"{plan.method.name} is unknown; choose mask_strategy magnitude, or exclude it"
            )
        return names
