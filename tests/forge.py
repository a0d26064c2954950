"""A workspace as ModelForge's clients find it: a model, rows for every task, and a result of an earlier training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts import as_adapter
from doors import report, start
from modelworks.app.services import Services
from modelworks.core.nouns import Adapter, EventType, JsonObject, Model, Parent
from modelworks.core.states import JobState
from modelworks.store import jobs as queue
from modelworks.store.catalog import Publication
from tiny import tiny_adapter

MODEL = "meta-llama/Llama-3.2-3B"
ROWS: dict[str, list[dict[str, Any]]] = {
    "chat": [{"input": f"Say {number}.", "output": f"{number}!"} for number in range(20)],
    "summaries": [{"article": f"Text {number} is long.", "summary": f"{number}"} for number in range(20)],
    "squad": [
        {"context": f"It is {number}.", "question": f"What is it, {number}?", "answers": {"text": [str(number)]}}
        for number in range(20)
    ],
    "pairs": [{"prompt": f"Say {number}.", "chosen": f"{number}!", "rejected": "no"} for number in range(20)],
}


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def add_trained(services: Services, scratch: Path, name: str, labels: JsonObject | None = None) -> Adapter:
    """An adapter of MODEL, published by a training that has ended."""
    base = services.catalog.model(MODEL)
    assert isinstance(base, Model)
    folder = tiny_adapter(services.settings.home / "adapters" / scratch.name, base.path)
    spec: JsonObject = {"model": MODEL, "num_train_epochs": 3.0, "max_steps": None}
    job = queue.insert_job(
        services.database,
        queue.NewJob(kind="train", spec=spec, inputs={}, needs={"cpu": 1}, labels=labels or {}),
    )
    job = start(services, job)
    report(services, job, [{"step": 12, "loss": 0.234, "learning_rate": 0.0, "epoch": 3.0}])
    done: JsonObject = {"done": 12, "total": 12, "unit": "steps", "stage": "training", "epoch": 3.0}
    report(services, job, [done], EventType.PROGRESS)
    recipe: JsonObject = {
        **spec, "kind": "train", "strategy": "sft", "per_device_train_batch_size": 4, "learning_rate": 0.0002,
    }  # fmt: skip
    adapter = replace(
        as_adapter(folder, name, base),
        recipe=recipe,
        metrics={"train_loss": 0.234, "loss": 0.5, "perplexity": 1.65},
        parents=(Parent.of("base", base),),
        job_id=job.id,
    )
    ending = queue.Ending(
        state=JobState.SUCCEEDED, result={}, artifacts=(Publication(artifact=adapter, home=services.settings.home),)
    )
    assert queue.end_job(services.database, job.id, job.runs, ending)
    found = services.catalog.model(name)
    assert isinstance(found, Adapter)
    return found
