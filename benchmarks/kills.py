"""The kill matrix: one training, `kill -9` at 20 seeded moments, and the weights of the run that nobody disturbed.

Run it by `python benchmarks/kills.py [SEED]`; it takes some minutes, since every run loads everything anew.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from killing import kill_at_random_moments
from modelworks.app.wiring import App, open_app
from modelworks.core.config import Settings
from modelworks.core.nouns import EventType, Job
from modelworks.data.spec import ImportSpec
from tiny import tiny_llama

KILLS = 20
SPEC = {
    "model": "org/tiny", "dataset": "rows", "max_steps": 120, "save_steps": 4, "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2, "lora_dropout": 0.1, "max_length": 64, "seed": 7, "device": "cpu",
    "eval_steps": 25, "load_best_model_at_end": True, "early_stopping_patience": 50,
}  # fmt: skip


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        app = open_app(
            Settings.model_validate(
                {"home": home, "hub_offline": True, "max_runs": KILLS + 2, "retry_delay_seconds": 0,
                 "allow_paths": (home,)}
            )
        )  # fmt: skip
        app.start_worker()
        try:
            return report(app, home, seed)
        finally:
            app.close()


def report(app: App, home: Path, seed: int) -> int:
    services = app.services
    services.catalog.add_model(tiny_llama(home / "source" / "tiny"), "org/tiny")
    rows = [{"prompt": f"Count to {number}.", "completion": "1 " * (number % 9 + 1)} for number in range(60)]
    source = home / "source" / "rows.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    services.catalog.upload(source, ImportSpec(name="rows"))

    began = time.monotonic()
    whole = services.wait(services.submit("train", SPEC | {"name": "whole"}).id, 3600)
    print(f"undisturbed: {whole.state} in {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    job = services.submit("train", SPEC | {"name": "cut"})
    hit = kill_at_random_moments(home / "jobs" / job.id, KILLS, seed, lambda: services.job(job.id).state.is_final)
    cut = services.wait(job.id, 3600)
    print(f"killed {len(hit)} times ({', '.join(hit)}): {cut.state} after {cut.runs} runs, "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    same_weights = weights(app, "whole") == weights(app, "cut")
    whole_losses, cut_losses = losses(app, whole), losses(app, cut)
    differ = [step for step, told in sorted(whole_losses.items()) if cut_losses.get(step) != told]
    print(f"weights equal to the byte: {same_weights}; steps whose loss differs: {differ[:9]} of {len(whole_losses)}")
    return 0 if same_weights and not differ and len(hit) == KILLS else 1


def weights(app: App, name: str) -> dict[str, str]:
    made = app.services.catalog.model(name)
    return {file.path: file.sha256 for file in made.files if file.path.endswith(".safetensors")}


def losses(app: App, job: Job) -> dict[int, set[float]]:
    """What was told of each step: one number, however often it was computed."""
    told: dict[int, set[float]] = {}
    after = 0
    while page := app.services.events(job.id, after):
        after = page[-1].seq
        for event in page:
            if event.type is EventType.METRIC and "loss" in event.body:
                told.setdefault(int(str(event.body["step"])), set()).add(float(str(event.body["loss"])))
    return told


if __name__ == "__main__":
    sys.exit(main())
