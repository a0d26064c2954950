"""A training from beginning to end: resumed where it was cut, measured, published."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from modelworks.core.context import JobContext
from modelworks.core.errors import Unsupported
from modelworks.core.nouns import JsonObject
from modelworks.train import callbacks, checkpoints
from modelworks.train.launch import run_together
from modelworks.train.network import choose_provider
from modelworks.train.plan import adapter_to_go_on_from, check, choose_strategy, chosen_inputs, settle
from modelworks.train.publish import publish
from modelworks.train.rewards import files_named
from modelworks.train.sharding import undivided
from modelworks.train.shared import SharedJob
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Setup, Training
from modelworks.train.trainer import train_or_resume
from modelworks.weights.loading import choose_device, choose_dtype, keep_freed_memory, prepare_cpu, quiet_libraries

# Fields that change nothing in the course of the weights, or are among the facts as what they came to.
_WITHOUT_EFFECT = {
    "model", "dataset", "name", "replace", "output_dir", "logging_steps", "save_steps", "save_total_limit",
    "report_to", "sample_prompts", "sample_max_new_tokens", "merge", "export_gguf", "gradient_checkpointing",
    "device", "dtype", "packing", "use_liger_kernel", "torch_compile",
}  # fmt: skip

# Where weights are divided, layers come and go: in memory that is kept they would leave holes as large as themselves.
_LARGEST_KEPT_BYTES = 1 << 20


def run(spec: TrainSpec, job: JobContext) -> JsonObject:
    """Train and publish an adapter or a model; return its numbers."""
    check(spec, job.inputs)
    _check_libraries()
    with checkpoints.paused_when_full(job.checkpoints):
        return run_together(spec, job, _course)


def _course(spec: TrainSpec, job: SharedJob) -> JsonObject:
    """What every process of a training does."""
    quiet_libraries()
    prepare_cpu()
    if spec.parallel == "fsdp":
        keep_freed_memory(_LARGEST_KEPT_BYTES)
    setup = _decide(spec, job)
    # Before the long work: a checkpoint of another training is refused at once.
    with job.first_of_all():
        checkpoint = checkpoints.newest_verified(job.checkpoints, setup.fingerprint)
    job.progress(0, 1, "steps", stage="preparing")
    strategy, _ = choose_strategy(spec)
    training = strategy.build(setup)
    _tell(setup, training)
    watching = callbacks.watch(setup, training)
    train_or_resume(job, training.trainer, checkpoint)
    metrics = {**watching.finish(), "train_loss": _recent_loss(training.trainer)}
    network = training.finish(training.network)
    if spec.trains_parts:
        network = undivided(network, keep=job.speaks)
    if job.speaks:
        publish(setup, network, metrics, training.counts)
    steps = training.trainer.state.global_step
    used: JsonObject = {"steps": steps, "provider_used": setup.provider}
    return {"name": spec.published_name, **used, **training.counts, **metrics}


def _decide(spec: TrainSpec, job: SharedJob) -> Setup:
    model, dataset = chosen_inputs(spec, job.inputs)
    _, params = choose_strategy(spec)
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    settled, start = asdict(settle(spec, model)), adapter_to_go_on_from(spec, job.inputs)
    facts: JsonObject = {
        "spec": spec.model_dump(mode="json", exclude=_WITHOUT_EFFECT) | settled,
        "model": model.digest,
        "start": start.digest if start else None,
        "dataset": dataset.digest,
        "judges": {name: job.inputs[name].digest for name in (*spec.models[1:], *files_named(spec.params))},
        "device": device,
        "dtype": str(dtype),
    }
    return Setup(
        spec=spec,
        params=params,
        model=model,
        dataset=dataset,
        job=job,
        device=device,
        dtype=dtype,
        fingerprint=checkpoints.fingerprint(facts),
        **settled,
        # unsloth puts in adapters of its own only.
        provider="huggingface" if start else choose_provider(spec.provider, device, job),
        start=start,
    )


def _tell(setup: Setup, training: Training) -> None:
    counts, spec = training.counts, setup.spec
    trainable = sum(weight.numel() for weight in training.network.parameters() if weight.requires_grad)
    setup.job.log(
        f"{spec.strategy} of {setup.model.name} on {setup.device} in {str(setup.dtype).removeprefix('torch.')}: "
        f"{trainable:,} trainable weights, {counts['train_rows']} rows, {counts['train_tokens']} tokens"
    )
    for what in ("truncated", "masked"):
        if counts.get(f"{what}_rows"):
            consequence = "lose their end" if what == "truncated" else "lose their whole answer and are left out"
            setup.job.log(
                f"max_length {setup.max_length}: {counts[f'{what}_rows']} rows {consequence}", level="warning"
            )


def _recent_loss(trainer: Any) -> float:
    """Mean training loss over the last tenth of the steps; the history outlives a resume."""
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    recent = losses[-max(1, len(losses) // 10) :]
    return sum(recent) / len(recent)


def _check_libraries() -> None:
    try:
        import peft  # noqa: F401 - only whether it is there
        import trl  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise Unsupported(f"training needs {error.name}; install it with: pip install 'modelworks[train]'") from None
