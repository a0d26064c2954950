"""Where trials are made: one network in memory, into which merge after merge is written and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from modelworks.core.context import JobContext
from modelworks.core.errors import Unsupported
from modelworks.data.record import split_path
from modelworks.evaluate.metric import Subject, metrics
from modelworks.merge.engine import Pace, merge
from modelworks.merge.folder import JOURNAL, merge_into
from modelworks.merge.memory import MemorySink
from modelworks.merge.plan import Plan, make_plan
from modelworks.merge.spec import MergeSpec
from modelworks.search.spec import SearchSpec
from modelworks.weights.loading import choose_device, choose_dtype, load_network, prepare_cpu
from modelworks.weights.reader import Checkpoint

Half: TypeAlias = Literal["choose", "report"]


@dataclass(frozen=True, slots=True)
class _Quiet:
    """The Watch of a merge that is only a step of something longer."""

    check: Callable[[], None]

    def progress(self, done: float, total: float, unit: str, **facts: str | float) -> None:  # noqa: ARG002 # as Watch
        self.check()


class Bench:
    """Merges and measures; on the disk it changes nothing after it is set up."""

    def __init__(self, spec: SearchSpec, job: JobContext) -> None:
        self._spec, self._job = spec, job
        self._device = choose_device(spec.recipe.device)
        self._pace = Pace(self._device, report="none")
        self._watch = _Quiet(job.check)
        prepare_cpu()
        halves: tuple[Half, Half] = ("choose", "report")
        self._rows = {half: _rows(spec, job, half) for half in halves}
        plan = make_plan(spec.recipe, job.inputs)
        self._folder = plan.frame.path if _keeps_its_shape(spec.recipe, plan) else self._first(plan)
        self._network: Any = load_network(self._folder, choose_dtype(spec.dtype, self._device), self._device)
        self._tensors = dict(self._network.named_parameters()) | dict(self._network.named_buffers())
        # A head that is tied is no parameter of its own, and loading a file leaves its copy out as well.
        known = self._network.state_dict().keys()
        for step in plan.steps:
            if step.output.name not in known and step.merged:
                raise Unsupported(
                    f"{step.output.name} is no parameter of {type(self._network).__name__}, so its merges cannot be "
                    "measured in memory; merge, and compare the results with eval"
                )

    def merge(self, recipe: MergeSpec) -> None:
        """Make the network that of a recipe.

        Raises:
            Invalid: its result is not finite.
        """
        plan = make_plan(recipe, self._job.inputs)
        steps = tuple(step for step in plan.steps if step.output.name in self._tensors)
        sink = MemorySink([step.output for step in steps])
        merge(replace(plan, steps=steps), sink, self._watch, self._pace)
        for name, tensor in sink.tensors().items():
            self._tensors[name].detach().copy_(tensor)

    def measure(self, half: Half, tell: Callable[[float], None]) -> dict[str, dict[str, float]]:
        """Numbers by dataset and column; `tell` hears the share done."""
        found: dict[str, dict[str, float]] = {name: {} for name in self._rows[half]}
        pairs = [(name, metric) for name in found for metric in self._spec.metrics]
        for done, (name, metric) in enumerate(pairs):

            def tell_share(share: float, done: int = done) -> None:
                tell((done + share) / len(pairs))

            subject = Subject(
                spec=self._spec.measuring(), network=self._network, model_folder=self._folder,
                dataset_folder=self._rows[half][name], device=self._device, tell=tell_share, check=self._job.check,
            )  # fmt: skip
            found[name].update(metrics()[metric].measure(subject).values)
        return found

    def _first(self, plan: Plan) -> Path:
        """A folder of the recipe's own merge, where no model's folder has its shapes or its tokenizer."""
        folder = self._job.checkpoints / "first"
        if not (folder / "config.json").is_file() or (folder / JOURNAL).exists():
            merge_into(folder, plan, self._watch, self._pace, "first", (), {})
        return folder


def _keeps_its_shape(recipe: MergeSpec, plan: Plan) -> bool:
    with Checkpoint.open(plan.frame.path) as checkpoint:
        shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    changed = any(shapes.get(step.output.name) != step.output.shape for step in plan.steps)
    return not changed and recipe.tokenizer is None and recipe.chat_template is None


def _rows(spec: SearchSpec, job: JobContext, half: Half) -> dict[str, Path]:
    """By dataset, a folder with every second held-out row: the even ones to choose by, the odd ones to report on."""
    folders = {}
    for place, name in enumerate(spec.datasets):
        folder = job.checkpoints / "rows" / half / str(place)
        folder.mkdir(parents=True, exist_ok=True)
        stop = None if spec.limit is None else 2 * spec.limit
        with split_path(job.inputs[name].path, "validation").open("rb") as held_out:
            chosen = list(islice(held_out, int(half == "report"), stop, 2))
        split_path(folder, "validation").write_bytes(b"".join(chosen))
        folders[name] = folder
    return folders
