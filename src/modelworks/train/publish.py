"""What a training leaves behind: an adapter or a model, with a card; where asked, the whole model and a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelworks.core.hashing import digest_of, list_files
from modelworks.core.ids import new_id
from modelworks.core.nouns import ArtifactKind, Draft, JsonObject, Parent
from modelworks.train.card import write_card
from modelworks.train.rewards import files_named
from modelworks.train.strategy import Setup
from modelworks.weights.companions import copy_companions
from modelworks.weights.export import file_draft, file_name
from modelworks.weights.folding import fold
from modelworks.weights.gguf_export import write_gguf
from modelworks.weights.layout import inspect_model


def publish(setup: Setup, network: Any, metrics: dict[str, float], counts: JsonObject) -> None:
    """Write the trained weights to staged folders and hand them to the job: all appear when it succeeds."""
    spec, name = setup.spec, setup.spec.published_name
    recipe = {**spec.model_dump(mode="json"), "learning_rate": setup.learning_rate}
    recipe |= {"kind": "train", "provider": setup.provider}
    judging = (*spec.models[1:], *files_named(spec.params))
    judges = (Parent.of("judge", setup.job.inputs[name]) for name in judging)
    begun = (Parent.of("adapter", setup.start),) if setup.start else ()
    parents = (Parent.of("base", setup.model), *begun, Parent.of("data", setup.dataset), *judges)

    def hand_over(kind: ArtifactKind, folder: Path, name: str, facts: JsonObject, *more: Parent) -> None:
        made_from = (*parents, *more)
        write_card(folder, name, setup, made_from, metrics, counts)
        setup.job.publish(
            Draft(
                kind=kind, name=name, folder=folder, facts=facts, parents=made_from, recipe=recipe, metrics=metrics,
                replace=spec.replace,
            )
        )  # fmt: skip

    whole = folder = setup.job.stage("output")
    if not hasattr(network, "peft_config"):
        _write_model(setup, network, folder)
        hand_over(ArtifactKind.MODEL, folder, name, inspect_model(folder))
    else:
        # Known beforehand, so that the merged model can name it as a parent.
        own: JsonObject = {"id": new_id()} if spec.merge else {}
        hand_over(ArtifactKind.ADAPTER, folder, name, _write_adapter(setup, network, folder) | own)
        if spec.merge or spec.export_gguf:
            setup.job.progress(0, 1, "models", stage="merging")
            whole = setup.job.stage("merged")
            fold(setup.model.path, folder, whole)
        if spec.merge:
            adapter = Parent("adapter", ArtifactKind.ADAPTER, str(own["id"]), name, digest_of(list_files(folder)))
            hand_over(ArtifactKind.MODEL, whole, spec.merged_name, inspect_model(whole), adapter)
    if spec.export_gguf:
        place = setup.job.stage("gguf") / file_name(name, spec.export_gguf)

        def on_bytes(done: int, total: int) -> None:
            setup.job.progress(done, total, "bytes", stage="exporting")

        write_gguf(whole, place, spec.export_gguf, name, on_bytes)
        setup.job.publish(file_draft(place, spec.gguf_name, parents, recipe, replace=spec.replace))


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


def _write_model(setup: Setup, network: Any, folder: Path) -> None:
    import torch

    # In the dtype it came in: what reads the base reads this as well, in as much memory.
    network.to(getattr(torch, setup.model.dtype, setup.dtype)).save_pretrained(str(folder))
    # The rest (tokenizer, template, generation settings) stays what it was.
    copy_companions(setup.model.path, folder)
