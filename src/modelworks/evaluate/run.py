"""An evaluation from beginning to end: every model on every dataset, one table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modelworks.core.context import JobContext
from modelworks.core.nouns import Adapter, JsonObject, JsonValue, Model
from modelworks.evaluate.metric import Subject, metrics
from modelworks.evaluate.plan import check
from modelworks.evaluate.spec import EvaluateSpec
from modelworks.weights.loading import choose_device, choose_dtype, load_network, prepare_cpu


def run(spec: EvaluateSpec, job: JobContext) -> JsonObject:
    """Measure and return the table.

    Returns:
        `columns`, `rows` (one a model and dataset, in the order asked for, a value None where a metric does not
        apply) and `samples` of generated answers.
    """
    check(spec, job.inputs)
    prepare_cpu()
    table = _Table(spec, job)
    # By base, so that each is loaded once however many adapters it carries.
    for base, names in _by_base(spec, job).values():
        network = load_network(base.path, table.dtype, table.device)
        for name in names:
            artifact = job.inputs[name]
            if isinstance(artifact, Adapter):
                with _adapted(network, artifact) as adapted:
                    table.measure(name, base, adapted)
            else:
                table.measure(name, base, network)
    return table.result()


class _Table:
    def __init__(self, spec: EvaluateSpec, job: JobContext) -> None:
        self.spec = spec
        self.job = job
        self.device = choose_device(spec.device)
        self.dtype = choose_dtype(spec.dtype, self.device)
        self.chosen = [metrics()[name] for name in spec.metrics]
        self.cells: dict[tuple[str, str], dict[str, float]] = {}
        self.samples: list[JsonValue] = []
        self.done = 0
        self.total = len(spec.models) * len(spec.datasets) * len(spec.metrics)

    def measure(self, name: str, base: Model, network: Any) -> None:
        for dataset_name in self.spec.datasets:
            dataset = self.job.inputs[dataset_name]
            cell = self.cells.setdefault((name, dataset_name), {})
            for metric in self.chosen:
                subject = self._subject(name, base, network, dataset)
                measured = metric.measure(subject)
                cell.update(measured.values)
                self.samples += [{"model": name, "dataset": dataset_name, **sample} for sample in measured.samples]
                self.done += 1
                subject.tell(0)

    def result(self) -> JsonObject:
        columns = [column for metric in self.chosen for column in metric.columns]
        rows: list[JsonValue] = [
            {"model": model, "dataset": dataset, **{column: cell.get(column) for column in columns}}
            for model in self.spec.models
            for dataset in self.spec.datasets
            for cell in [self.cells[model, dataset]]
        ]
        return {"columns": [*columns], "rows": rows, "samples": self.samples}

    def _subject(self, name: str, base: Model, network: Any, dataset: Any) -> Subject:
        def tell(share: float) -> None:
            self.job.progress(
                round(self.done + share, 3), self.total, "measurements", stage=f"{name} on {dataset.name}"
            )

        return Subject(
            spec=self.spec,
            network=network,
            model_folder=base.path,
            dataset_folder=dataset.path,
            device=self.device,
            tell=tell,
            check=self.job.check,
        )


def _by_base(spec: EvaluateSpec, job: JobContext) -> dict[str, tuple[Model, list[str]]]:
    """Names by the id of the model whose weights they need."""
    groups: dict[str, tuple[Model, list[str]]] = {}
    for name in spec.models:
        artifact = job.inputs[name]
        base = job.inputs[artifact.base] if isinstance(artifact, Adapter) else artifact
        assert isinstance(base, Model)
        groups.setdefault(base.id, (base, []))[1].append(name)
    return groups


@contextmanager
def _adapted(network: Any, adapter: Adapter) -> Iterator[Any]:
    """Put `adapter` into `network`, and take it out again."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(network, str(adapter.path), autocast_adapter_dtype=False).eval()
    try:
        yield adapted
    finally:
        adapted.unload()
