"""Artifacts for tests, as the catalogue would hand them to a job: a checkpoint, an adapter, a few rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelworks.core.clock import now
from modelworks.core.hashing import digest_of, list_files
from modelworks.core.nouns import Adapter, Artifact, Dataset, Draft, Model


def model_at(folder: Path, name: str = "tiny") -> Model:
    config = json.loads((folder / "config.json").read_text())
    return Model(
        **_published(folder, name),
        architecture=config["architectures"][0],
        dtype=config["dtype"],
        parameters=0,
        vocab_size=config["vocab_size"],
        context_length=config["max_position_embeddings"],
    )


def adapter_at(folder: Path, base: Model) -> Adapter:
    config = json.loads((folder / "adapter_config.json").read_text())
    return Adapter(
        **_published(folder, folder.name),
        base=base.id,
        base_name=base.name,
        base_digest=base.digest,
        rank=config["r"],
        alpha=config["lora_alpha"],
        target_modules=tuple(config["target_modules"]),
        parameters=0,
    )


def published(draft: Draft) -> Adapter | Model:
    """What the server would make of `draft`."""
    facts: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in draft.facts.items()
    }
    return (Adapter if draft.kind == "adapter" else Model)(**_published(draft.folder, draft.name), **facts)


def conversations(folder: Path, train: Sequence[tuple[str, str]], validation: Sequence[tuple[str, str]]) -> Dataset:
    """Rows of one question and one answer."""
    folder.mkdir(parents=True)
    for split, rows in (("train", train), ("validation", validation)):
        lines = [json.dumps({"messages": [_turn("user", ask), _turn("assistant", say)]}) for ask, say in rows]
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return Dataset(
        **_published(folder, folder.name),
        format="messages",
        columns=("messages",),
        train_rows=len(train),
        validation_rows=len(validation),
    )


def preferences(folder: Path, train: Sequence[tuple[str, str, str]], validation: int = 0) -> Dataset:
    """Rows of one question, its chosen and its rejected answer; the first `validation` ones are held out as well."""
    folder.mkdir(parents=True)
    for split, rows in (("train", train), ("validation", train[:validation])):
        lines = [
            json.dumps({"prompt": [_turn("user", ask)], "chosen": better, "rejected": worse})
            for ask, better, worse in rows
        ]
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return Dataset(
        **_published(folder, folder.name),
        format="preference",
        columns=("prompt", "chosen", "rejected"),
        train_rows=len(train),
        validation_rows=validation,
    )


def texts(folder: Path, train: Sequence[str], validation: int = 0) -> Dataset:
    """Rows of plain text; the first `validation` ones are held out as well."""
    folder.mkdir(parents=True)
    for split, rows in (("train", train), ("validation", train[:validation])):
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps({'text': row})}\n" for row in rows))
    return Dataset(
        **_published(folder, folder.name),
        format="text",
        columns=("text",),
        train_rows=len(train),
        validation_rows=validation,
    )


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _published(folder: Path, name: str) -> dict[str, Any]:
    files = list_files(folder)
    digest = digest_of(files)
    artifact = Artifact(
        id=f"id-{name}", name=name, digest=digest, path=folder, size_bytes=0, files=files, created_at=now()
    )
    return {
        field: getattr(artifact, field)
        for field in ("id", "name", "digest", "path", "size_bytes", "files", "created_at")
    }
