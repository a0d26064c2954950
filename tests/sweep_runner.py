"""A runner that trains nothing: it tells losses, and publishes an adapter, as a training of its spec would.

The loss is the distance of the learning rate from 0.01; a rank of 13 fails. Put in place of the real one, it lets a
test run sweeps through the real server, worker and runner code in seconds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from modelworks.core.context import JobContext
from modelworks.core.errors import Invalid
from modelworks.core.nouns import ArtifactKind, Draft, JsonObject
from modelworks.jobs.folder import JobFolder, RunOrder
from modelworks.jobs.runner import run_job
from modelworks.store.catalog import from_json
from modelworks.train.spec import TrainSpec

# For the server: `before` of doors.serving.
IN_PLACE = f"""
import sys
from modelworks.app import wiring
wiring.RUNNER = (sys.executable, {str(Path(__file__))!r})
"""


def execute(order: RunOrder, job: JobContext) -> JsonObject:
    spec = TrainSpec.model_validate(order.spec)
    (job.checkpoints / "begun").touch()
    rate = float(spec.learning_rate)
    for step in range(1, (spec.max_steps or 5) + 1):
        job.metric(step, loss=1.0 / step + abs(rate - 0.01))
        time.sleep(spec.warmup_steps)
    if spec.lora_r == 13:
        raise Invalid("rank 13 brings no luck")
    base, folder = job.inputs[spec.model], job.stage("output")
    (folder / "adapter_model.safetensors").write_text(f"{rate} {spec.lora_r}")
    facts: JsonObject = {
        "base": base.id, "base_name": base.name, "base_digest": base.digest, "rank": spec.lora_r, "alpha": 1.0,
        "target_modules": [], "parameters": 1,
    }  # fmt: skip
    metrics = {"loss": abs(rate - 0.01), "accuracy": rate, "train_loss": 0.5}
    job.publish(
        Draft(
            kind=ArtifactKind.ADAPTER, name=spec.published_name, folder=folder, facts=facts, metrics=metrics,
            replace=spec.replace,
        )
    )  # fmt: skip
    return {"name": spec.published_name, **metrics}


if __name__ == "__main__":
    run_job(
        JobFolder(Path(sys.argv[1])),
        lambda inputs: {name: from_json(body) for name, body in inputs.items() if isinstance(body, dict)},
        execute,
    )
