"""How fast and in how little memory a model is trained, beside TRL's own trainers, and whether every strategy learns.

`make bench-train` runs it. All configurations get the same model, the same real rows and as many steps in the same run,
each in a process of its own. Tokens are those of the rows, padding left out; a speed is the median over the steps after
the first ones. Every configuration is run in turn, `--repeats` times, so that what else the machine does meets all.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
BASE = "smollm2-135m"
# Real instructions, answers and preferences; for measuring only, they are neither kept nor passed on.
DATA = "llamafactory==0.9.5"
FILES = {"rows": "alpaca_en_demo.json", "pairs": "dpo_en_demo.json"}
ROWS_A_BATCH, MAX_LENGTH, WARM_UP = 4, 512, 2
SHORT_PAIRS: dict[str, Any] = {"max_length": 256}
# What all are told beyond the rest in a comparison.
LENGTHS: dict[str, dict[str, Any]] = {"sft": {}, "dpo": SHORT_PAIRS}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}

# What each peer is told beyond what all are. TRL's defaults: float32 weights, bfloat16 autocast, checkpointing.
TUNED: dict[str, dict[str, Any]] = {
    "sft": {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"},
    "dpo": {"gradient_checkpointing": False},
}
BFLOAT16, FLOAT32 = ({"bf16": False, "model_init_kwargs": {"dtype": name}} for name in ("bfloat16", "float32"))
PEERS = {
    part: {"TRL, defaults": {}, "TRL, tuned, bfloat16": tuned | BFLOAT16, "TRL, tuned, float32": tuned | FLOAT32}
    for part, tuned in TUNED.items()
}
# The preferences with the shortest prompts; none of them is held out.
TWO = "two-pairs"
PARTS = ("sft", "dpo", "strategies", "answers")
SHORT = {"max_new_tokens": 24, "num_generations": 8, "eval_samples": 4, "reward_steps": 8}
# strategy: dataset, what it is told, its own metric, and +1 if that is to rise.
LEARNS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "sft": ("rows", {}, "loss", -1),
    "qlora": ("rows", {}, "loss", -1),
    "pretrain": ("plain", {"max_length": 256}, "loss", -1),
    "dpo": ("pairs", {"learning_rate": 1e-4} | SHORT_PAIRS, "rewards/margins", 1),
    "orpo": ("pairs", {"learning_rate": 1e-4} | SHORT_PAIRS, "log_odds_chosen", 1),
    # The good and the bad answers of a batch are to different prompts: fewer of them show no margin.
    "kto": (
        "rated",
        {"learning_rate": 5e-4, "per_device_train_batch_size": 8} | SHORT_PAIRS,
        "rewards/margins",
        1,
    ),
    "reward": ("pairs", {"learning_rate": 5e-4} | SHORT_PAIRS, "margin", 1),
    # Not the reward that it learns from, which falls by the price of leaving where it began. Rewards differ more from
    # prompt to prompt than by what is learnt, so every step has the same two.
    "rlhf": (
        TWO,
        {"learning_rate": 5e-4, "per_device_train_batch_size": 16, "params": SHORT} | SHORT_PAIRS,
        "rewards/reward_model/mean",
        1,
    ),
    # Answers are to have 100 characters.
    "grpo": (
        "rows",
        {
            "learning_rate": 5e-4,
            "max_steps": 20,
            "per_device_train_batch_size": 16,
            "params": {"num_generations": 8, "max_new_tokens": 48, "rewards": [{"name": "length", "length": 100}]},
        },
        "reward",
        1,
    ),
}


@dataclass
class Job:
    """A JobContext that keeps the metrics."""

    folder: Path
    inputs: Mapping[str, Any]
    job_id: str = "bench"
    pausing: bool = False
    metrics: list[dict[str, float]] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        return self.folder / "checkpoints"

    def stage(self, name: str) -> Path:
        (self.folder / name).mkdir()
        return self.folder / name

    def metric(self, step: int, **values: float) -> None:
        self.metrics.append({"step": step, **values})

    def check(self) -> None: ...
    def progress(self, *_: Any, **__: Any) -> None: ...
    def log(self, *_: Any, **__: Any) -> None: ...
    def publish(self, *_: Any) -> None: ...


def open_workspace(work: Path) -> Any:
    from modelworks.app.wiring import open_app
    from modelworks.core.config import load_settings

    return open_app(load_settings({"home": work / "home"}).settings)


def prepare(work: Path) -> None:
    """Fetch the rows from the package registry once, and bring model and rows into a workspace."""
    from modelworks.core.errors import NotFound
    from modelworks.data.spec import ImportSpec

    if not all((work / name).exists() for name in FILES.values()):
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llamafactory", "-d", str(work),
             DATA], check=True,
        )  # fmt: skip
        with tarfile.open(next(work.glob("llamafactory-*.tar.gz"))) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                source = archive.extractfile(member) if name in FILES.values() else None
                if source is not None:
                    (work / name).write_bytes(source.read())
    app = open_workspace(work)
    try:
        app.services.catalog.model(BASE)
    except NotFound:
        environment = os.environ | {"MODELWORKS_HOME": str(work / "home")}
        subprocess.run([str(Path(sys.executable).parent / "modelworks"), "pull", BASE], env=environment, check=True)
    given = {name: json.loads((work / file).read_text()) for name, file in FILES.items()}
    rows = {
        "rows": given["rows"],
        "pairs": [as_pair(row) for row in given["pairs"]],
        TWO: sorted(map(as_pair, given["pairs"]), key=lambda pair: len(str(pair["prompt"])))[:2],
        "rated": [rated for row in given["pairs"] for rated in as_rated(as_pair(row))],
        "plain": [{"text": row["output"]} for row in given["rows"]],
    }
    for name, these in rows.items():
        try:
            app.services.catalog.dataset(name)
        except NotFound:
            converted = work / f"{name}.jsonl"
            converted.write_text("".join(f"{json.dumps(row)}\n" for row in these))
            app.services.catalog.upload(converted, ImportSpec(name=name, validation_share=0 if name == TWO else 0.1))
    app.close()


def as_pair(row: dict[str, Any]) -> dict[str, Any]:
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    prompt = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    return {"prompt": prompt, "chosen": row["chosen"]["value"], "rejected": row["rejected"]["value"]}


def as_rated(pair: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"prompt": pair["prompt"], "completion": pair[key], "label": key == "chosen"} for key in ("chosen", "rejected")
    ]


def ours(work: Path, strategy: str, steps: int, **told: Any) -> list[dict[str, float]]:
    """Train as a job does; return the metrics of each step."""
    from modelworks.train.run import run
    from modelworks.train.spec import TrainSpec

    app = open_workspace(work)
    dataset = told.pop("dataset", "rows" if strategy == "sft" else "pairs")
    inputs = {BASE: app.services.catalog.model(BASE), dataset: app.services.catalog.dataset(dataset)}
    app.close()
    spec = TrainSpec.model_validate(
        {"model": BASE, "dataset": dataset, "strategy": strategy, "max_steps": steps, "max_length": MAX_LENGTH,
         "per_device_train_batch_size": ROWS_A_BATCH, "save_steps": steps, "num_train_epochs": 100, **told}
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=work) as folder:
        job = Job(Path(folder), inputs)
        run(spec, job)
    return job.metrics


def theirs(work: Path, strategy: str, steps: int, **told: Any) -> list[dict[str, float]]:
    """Train by TRL's trainer as its documentation shows; return time and tokens of each step."""
    import datasets
    import trl
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback

    app = open_workspace(work)
    model = str(app.services.catalog.model(BASE).path)
    rows = app.services.catalog.dataset("rows" if strategy == "sft" else "pairs").path / "train.jsonl"
    app.close()
    config, trainer_type = (trl.SFTConfig, trl.SFTTrainer) if strategy == "sft" else (trl.DPOConfig, trl.DPOTrainer)
    seconds: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):  # type: ignore[misc] # transformers is untyped
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began_at = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.began_at)

    with tempfile.TemporaryDirectory(dir=work) as folder:
        trainer = trainer_type(
            model=model,
            args=config(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=ROWS_A_BATCH,
                use_cpu=True, report_to="none", save_strategy="no", **{"max_length": MAX_LENGTH, **told},
            ),
            train_dataset=datasets.Dataset.from_list(as_trl(rows)),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=LoraConfig(**LORA),
            callbacks=[Clock()],
        )  # fmt: skip
        collate = trainer.data_collator

        def counted(batch: Any) -> Any:
            made = collate(batch)
            tokens.append(int(made["attention_mask"].sum()))
            return made

        trainer.data_collator = counted
        trainer.train()
    return [
        {"step": step, "step_time": took, "tokens_per_second": count / took}
        for step, (took, count) in enumerate(zip(seconds, tokens, strict=False), 1)
    ]


def as_trl(file: Path) -> list[dict[str, Any]]:
    """Our rows as TRL's conversational ones: a prompt, and the answers as messages."""
    found = []
    for line in file.read_text().splitlines():
        row = json.loads(line)
        if "messages" in row:
            found.append({"prompt": row["messages"][:-1], "completion": row["messages"][-1:]})
        else:
            answers = {key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")}
            found.append({"prompt": row["prompt"], **answers})
    return found


def matmul_peak(dtype_name: str) -> float:
    """GFLOP/s of a large matrix product."""
    import torch

    size = 2048
    left, right = (torch.randn(size, size).to(getattr(torch, dtype_name)) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def flops_a_token(work: Path) -> float:
    """What LoRA needs for a token of the rows: twice forward and twice back through frozen weights, six for learned.

    The head counts only for the tokens of answers.
    """
    from modelworks.data.batches import encode_split
    from modelworks.data.render import IGNORED

    app = open_workspace(work)
    model, rows = app.services.catalog.model(BASE), app.services.catalog.dataset("rows")
    app.close()
    encoded = encode_split(model.path, rows.path, "train", MAX_LENGTH)
    answers = sum(label != IGNORED for example in encoded.examples for label in example.labels) / encoded.tokens
    return 4 * 106.2e6 + 6 * 4.88e6 + 4 * 28.3e6 * answers


def measure(work: Path, who: str, strategy: str, steps: int, **told: Any) -> dict[str, Any]:
    """Run one configuration in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--work", str(work), "--child",
               json.dumps({"who": who, "strategy": strategy, "steps": steps, **told})]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{who} {strategy} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(work: Path, asked: dict[str, Any]) -> None:
    who, strategy = asked.pop("who"), asked.pop("strategy")
    if who == "peak":
        print(json.dumps({name: matmul_peak(name) for name in ("float32", "bfloat16")}))
        return
    steps = (ours if who == "ours" else theirs)(work, strategy, **asked)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"steps": steps, "peak_gb": peak_gb}))


def compare(work: Path, strategy: str, steps: int, repeats: int, peers: Sequence[str]) -> str:
    """Measure ours and TRL's in turn; a table of speeds, ours as a multiple of each."""
    peaks = measure(work, "peak", "", 0)
    flops = flops_a_token(work)
    runs: dict[str, list[dict[str, Any]]] = {}
    # Where bfloat16 is emulated, a step takes minutes.
    slow = () if peaks["bfloat16"] > peaks["float32"] else ("TRL, defaults", "TRL, tuned, bfloat16")
    for _ in range(repeats):
        runs.setdefault("ours", []).append(measure(work, "ours", strategy, steps, **LENGTHS[strategy]))
        for name, options in PEERS[strategy].items():
            if name in peers:
                count = min(steps, WARM_UP + 1) if name in slow else steps
                runs.setdefault(name, []).append(measure(work, "trl", strategy, count, **LENGTHS[strategy], **options))
    lines = [
        f"{strategy}; matrix product of 2048: {peaks['float32']:.0f} GFLOP/s float32, {peaks['bfloat16']:.0f} bfloat16",
        "",
        "| configuration | tokens/s | ours is | peak GB | share of float32 peak |",
        "|---|---|---|---|---|",
    ]

    def speed(name: str) -> float:
        rates = [float(step["tokens_per_second"]) for run in runs[name] for step in run["steps"][WARM_UP:]]
        return statistics.median(rates)

    for name in runs:
        share = f"{speed(name) * flops / 1e9 / peaks['float32']:.0%}" if strategy == "sft" else ""
        peak_gb = max(run["peak_gb"] for run in runs[name])
        lines.append(f"| {name} | {speed(name):.0f} | {speed('ours') / speed(name):.2f}x | {peak_gb:.2f} | {share} |")
    return "\n".join(lines)


def answer(work: Path, seconds: float) -> str:
    """Ask a real server again and again while a training of its own uses all cores; milliseconds of each request."""
    import httpx2
    from house import server

    spec = {"model": BASE, "dataset": "rows", "max_steps": 10_000, "max_length": MAX_LENGTH}
    with server(work / "home") as (url, _, _), httpx2.Client(base_url=url, timeout=60) as client:
        job = client.post("/modelworks/train", json=spec).raise_for_status().json()["id"]
        shown = f"/modelworks/jobs/{job}"
        while all(event["type"] != "metric" for event in client.get(f"{shown}/events").json()["items"]):
            time.sleep(1)
        asked = ("/modelworks/health", "/v1/models", "/modelworks/jobs", shown, "/metrics", "/")
        took: dict[str, list[float]] = {path: [] for path in asked}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for path in asked:
                began = time.perf_counter()
                client.get(path).raise_for_status()
                took[path].append((time.perf_counter() - began) * 1000)
                time.sleep(0.02)
        client.post(f"{shown}/cancel").raise_for_status()
    took["all"] = [each for times in took.values() for each in times]
    lines = [
        "| request, while a training uses all cores | requests | p50 ms | p99 ms | longest |",
        "|---|---|---|---|---|",
    ]
    for path, times in took.items():
        p50, p99 = (sorted(times)[int(len(times) * share)] for share in (0.5, 0.99))
        lines.append(f"| {path.replace(job, 'ID')} | {len(times)} | {p50:.1f} | {p99:.1f} | {max(times):.1f} |")
    return "\n".join(lines)


def learn(work: Path, steps: int, strategies: Sequence[str]) -> str:
    """Run strategies; each one's own metric over the first and the last third of the steps."""
    lines = ["| strategy | metric | first third | last third | as it should |", "|---|---|---|---|---|"]
    for strategy in strategies:
        dataset, told, metric, sign = LEARNS[strategy]
        run = measure(work, "ours", strategy, steps, **{"dataset": dataset, **told})
        values = [step[metric] for step in run["steps"] if metric in step]
        third = max(1, len(values) // 3)
        first, last = statistics.mean(values[:third]), statistics.mean(values[-third:])
        moved = "yes" if sign * (last - first) > 0 else "NO"
        lines.append(f"| {strategy} | {metric} | {first:.4f} | {last:.4f} | {moved} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / ".work" / "train", help="model, rows and results; 1 GB")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--learning-steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS))
    parser.add_argument("--peers", choices=PEERS["sft"], nargs="*", default=list(PEERS["sft"]))
    parser.add_argument("--strategies", choices=LEARNS, nargs="*", default=list(LEARNS))
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.child:
        child(asked.work, asked.child)
        return
    prepare(asked.work)
    for part in asked.only:
        if part == "strategies":
            made = learn(asked.work, asked.learning_steps, asked.strategies)
        elif part == "answers":
            made = answer(asked.work, 60)
        else:
            made = compare(asked.work, part, asked.steps, asked.repeats, asked.peers)
        print(made, flush=True)
        (asked.work / f"{part}.md").write_text(made + "\n")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
