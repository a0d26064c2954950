"""What a training leaves behind: an adapter or a model, with a card that says how it came to be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from modelworks.core.nouns import AnyArtifact, ArtifactKind, Draft, JsonObject, Parent
from modelworks.train.strategy import Setup

_WEIGHTS = (".safetensors", ".safetensors.index.json")


def publish(setup: Setup, network: Any, metrics: dict[str, float], counts: JsonObject) -> None:
    """Write the trained weights to a staged folder and hand it to the job."""
    spec = setup.spec
    folder = setup.job.stage("output")
    is_adapter = spec.tuning == "lora"
    facts = _write_adapter(setup, network, folder) if is_adapter else _write_model(setup, network, folder)
    (folder / "README.md").write_text(_card(setup, metrics, counts), encoding="utf-8")
    recipe = {**spec.model_dump(mode="json"), "learning_rate": setup.learning_rate}
    recipe |= {"kind": "train", "provider": setup.provider}
    judges = (_parent("judge", setup.job.inputs[name]) for name in spec.models[1:])
    setup.job.publish(
        Draft(
            kind=ArtifactKind.ADAPTER if is_adapter else ArtifactKind.MODEL,
            name=spec.published_name,
            folder=folder,
            facts=facts,
            parents=(_parent("base", setup.model), _parent("data", setup.dataset), *judges),
            recipe=recipe,
            metrics=metrics,
            replace=spec.replace,
        )
    )


def _write_adapter(setup: Setup, network: Any, folder: Path) -> JsonObject:
    network.save_pretrained(str(folder), save_embedding_layers=False)
    config = network.peft_config["default"]
    return {
        "base": setup.model.id,
        "base_name": setup.model.name,
        "base_digest": setup.model.digest,
        "rank": config.r,
        "alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
        "parameters": sum(weight.numel() for weight in network.parameters() if weight.requires_grad),
    }


def _write_model(setup: Setup, network: Any, folder: Path) -> JsonObject:
    import torch

    # In the dtype it came in: what reads the base reads this as well, in as much memory.
    dtype = getattr(torch, setup.model.dtype, setup.dtype)
    network.to(dtype).save_pretrained(str(folder))
    for path in sorted(setup.model.path.iterdir()):
        # The rest (tokenizer, template, generation settings) stays what it was; config.json too, but for what we wrote.
        if path.is_file() and not path.name.endswith(_WEIGHTS) and path.name not in {"config.json", "README.md"}:
            shutil.copyfile(path, folder / path.name)
    return {
        "architecture": setup.model.architecture,
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": setup.model.parameters,
        "vocab_size": setup.model.vocab_size,
        "context_length": setup.model.context_length,
    }


def _parent(role: str, artifact: AnyArtifact) -> Parent:
    return Parent(role, artifact.kind, artifact.id, artifact.name, artifact.digest)


def _card(setup: Setup, metrics: dict[str, float], counts: JsonObject) -> str:
    spec = setup.spec
    how = f"LoRA, rank {spec.lora_r}, alpha {spec.lora_alpha:g}" if spec.tuning == "lora" else "every weight"
    lines = [
        f"# {spec.published_name}",
        "",
        f"{setup.model.name} fine-tuned on {setup.dataset.name} with Modelworks ({spec.strategy}; {how}).",
        "",
        "| | |",
        "|---|---|",
        f"| base | {setup.model.name}, sha256 {setup.model.digest} |",
        f"| data | {setup.dataset.name}, sha256 {setup.dataset.digest} |",
        *(f"| {key.replace('_', ' ')} | {value} |" for key, value in counts.items()),
        *(f"| {key.replace('_', ' ')} | {value:.4g} |" for key, value in metrics.items()),
        f"| learning rate | {setup.learning_rate:g}, {spec.lr_scheduler_type} |",
        f"| batch | {setup.per_device_train_batch_size} x {spec.gradient_accumulation_steps} |",
        f"| seed | {spec.seed} |",
    ]
    return "\n".join(lines) + "\n"
