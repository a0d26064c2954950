"""Trainings on what their sender calls a dataset: a name, a file of this machine, or a file that was sent along."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from modelworks.app.dataset_files import dataset_called, imported_once
from modelworks.app.services import Services
from modelworks.app.training import shortened
from modelworks.core.errors import ModelworksError
from modelworks.core.nouns import Job, JsonObject
from modelworks.data.reading import read_rows

SAMPLE_ROWS = 3


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """A file of rows as its sender wrote it. A cell is null where it is absent, null or, in a table, empty."""

    total_rows: int
    columns: list[str]
    # Of the columns that have any.
    null_counts: dict[str, int]
    sample_data: list[JsonObject]
    file_type: str


@dataclass(frozen=True)
class Queued:
    job: Job
    # What was done otherwise than asked.
    notes: tuple[str, ...]
    # Of a file that was sent along.
    facts: FileFacts | None = None


def queue_training(services: Services, spec: Mapping[str, object]) -> Queued:
    """Queue a training, its dataset by name or path, its rows cut where the model reads no more. Blocks.

    Raises:
        NotFound: there is no such model, dataset or file.
    """
    model = services.catalog.model(str(spec["model"]))
    dataset = dataset_called(services, called := str(spec["dataset"]))
    shorter, notes = shortened(spec, model)
    body = {**spec, **shorter, "dataset": called if called == dataset.id else dataset.name}
    return Queued(services.submit("train", body), notes)


def queue_training_on(services: Services, file: Path, label: str, spec: Mapping[str, object]) -> Queued:
    """Queue a training on a received file, which becomes a dataset; equal content is the same dataset. Blocks."""
    services.catalog.model(str(spec["model"]))  # before the import, which would be for nothing
    dataset, is_new = imported_once(services, file, label)
    try:
        return replace(queue_training(services, {**spec, "dataset": dataset.name}), facts=_facts(file, label))
    except ModelworksError:
        if is_new:
            services.remove("datasets", dataset.name)
        raise


def _facts(source: Path, label: str) -> FileFacts:
    """Count and show the rows of a file; those that cannot be read are left to the import."""
    total, filled, sample = 0, Counter[str](), list[JsonObject]()
    is_table = source.suffix in {".csv", ".tsv"}
    for raw in read_rows(source):
        if not isinstance(raw.value, dict):
            continue
        total += 1
        filled.update(
            {str(name): int(not (value is None or (is_table and value == ""))) for name, value in raw.value.items()}
        )
        if len(sample) < SAMPLE_ROWS:
            sample.append(raw.value)
    facts = FileFacts(
        total_rows=total,
        columns=list(filled),
        null_counts={name: total - count for name, count in filled.items() if count < total},
        sample_data=sample,
        file_type=Path(label).suffix.removeprefix(".").upper(),
    )
    # A file may hold what JSON cannot: dates, halves of characters, numbers that are none.
    text = json.dumps(asdict(facts), default=str, ensure_ascii=False).encode(errors="replace")
    return FileFacts(**json.loads(text, parse_constant=lambda _: None))
