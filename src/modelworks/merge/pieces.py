"""The models of one merge, opened together and read in aligned pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from modelworks.core.context import JobContext
from modelworks.core.errors import Unsupported
from modelworks.merge.lora import LowRankReader
from modelworks.merge.method import Piece
from modelworks.merge.plan import Plan, Step, spans
from modelworks.weights.reader import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor


class Pieces:
    """A Look at the models of a plan."""

    def __init__(self, plan: Plan, job: JobContext, device: str, chunk_elements: int, stack: ExitStack) -> None:
        import torch

        self.plan = plan
        self.sizes = {step.source.name: step.source.elements for step in plan.steps if step.merged}
        self._job = job
        self._device = device
        self._chunk_elements = chunk_elements
        self._size_bytes = sum(step.output.size_bytes for step in plan.steps)
        self._dtype = getattr(torch, plan.method.precision)
        self._steps = {step.source.name: step for step in plan.steps}
        self._base = stack.enter_context(Checkpoint.open(plan.base.path))
        self._readers: list[Checkpoint | LowRankReader] = []
        for expert in plan.experts:
            checkpoint = stack.enter_context(Checkpoint.open(expert.artifact.path))
            self._readers.append(checkpoint if expert.changes is None else LowRankReader(checkpoint, expert.changes))

    def spans(self, step: Step) -> Iterator[tuple[int, int]]:
        for span in spans(step.source.shape, self._chunk_elements):
            self._job.check()
            yield span

    def pieces(self, name: str) -> Iterator[Piece]:
        # How often a method will look is not known, so this counts as nothing done yet.
        self._job.progress(0, self._size_bytes, "bytes", stage="looking", tensor=name)
        for start, stop in self.spans(self._steps[name]):
            yield self.read(name, start, stop)

    def stored(self, name: str, start: int, stop: int) -> Tensor:
        """A run of the base's elements as they are stored."""
        return self._base.read(name, start, stop)

    def read(self, name: str, start: int, stop: int) -> Piece:
        import torch

        base = self.stored(name, start, stop).to(self._device).to(self._dtype)
        deltas = torch.empty(len(self._readers), stop - start, device=self._device, dtype=self._dtype)
        wants_values = self.plan.method.space == "weights"
        models = torch.empty_like(deltas) if wants_values else deltas
        for row, (expert, reader) in enumerate(zip(self.plan.experts, self._readers, strict=True)):
            if not isinstance(reader, LowRankReader):
                values = reader.read(expert.names[name], start, stop).to(self._device).to(self._dtype)
                torch.sub(values, base, out=deltas[row])
            else:
                change = reader.read(name, start, stop)
                values = base if change is None else (base + change.to(self._device)).to(self._dtype)
                deltas[row] = 0.0 if change is None else self._difference(change, values, base)
            if wants_values:
                models[row] = values
        return Piece(name, start, base, models, deltas)

    def _difference(self, change: Tensor, values: Tensor, base: Tensor) -> Tensor:
        # In float32 the change is known more exactly than by subtracting again.
        return change if self.plan.method.precision == "float32" else values - base

    def in_model_order(self) -> Sequence[str]:
        """The tensors to be merged in the order of the network's own `named_parameters`.

        The files do not tell it, so the network's class is asked, which is built without weights.

        Raises:
            Unsupported: this architecture names its parameters otherwise than its files.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = str(self.plan.base.path)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        names = [name for name, _ in network.named_parameters() if name in self.sizes]
        missing = sorted(self.sizes.keys() - set(names))
        if missing:
            raise Unsupported(
                f"{missing[0]} is no parameter of {type(network).__name__}, so its place among the random draws of "
                f"{self.plan.method.name} is unknown; choose mask_strategy magnitude, or exclude it"
            )
        return names
