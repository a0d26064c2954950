"""The nouns: frozen values that everything else speaks about."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import JsonValue as JsonValue

from modelworks.core.states import JobState

JsonObject: TypeAlias = dict[str, JsonValue]


class ArtifactKind(StrEnum):
    DATASET = "dataset"
    MODEL = "model"
    ADAPTER = "adapter"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a published folder; `path` is relative, with forward slashes."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Parent:
    """What an artifact was made from: `role` is base, expert, adapter, data, source ..."""

    role: str
    kind: ArtifactKind
    id: str
    name: str
    digest: str

    @classmethod
    def of(cls, role: str, artifact: AnyArtifact) -> Parent:
        return cls(role, artifact.kind, artifact.id, artifact.name, artifact.digest)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A published file set. `digest` is the sha256 over its file list, so equal content has equal digest."""

    id: str
    name: str
    digest: str
    path: Path
    size_bytes: int
    files: tuple[FileEntry, ...]
    parents: tuple[Parent, ...] = ()
    job_id: str | None = None
    # What was asked for, whole, so that it can be made again: the job's spec, or where it was imported from.
    recipe: JsonObject = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    created_at: datetime
    # Given at publication: 1, 2, 3 ..., never twice; 0 for a folder that was never registered.
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class Dataset(Artifact):
    """Rows on disk as `train.jsonl` and `validation.jsonl`, one canonical record a line."""

    kind: Literal[ArtifactKind.DATASET] = ArtifactKind.DATASET
    format: str
    columns: tuple[str, ...]
    train_rows: int
    validation_rows: int
    duplicate_rows: int = 0
    empty_rows: int = 0
    bad_rows: int = 0
    # what the import guessed, left out, or found worth a look
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return self.train_rows + self.validation_rows


@dataclass(frozen=True, kw_only=True)
class Model(Artifact):
    """A full checkpoint: a Hugging Face folder with safetensors weights, config, tokenizer and chat template."""

    kind: Literal[ArtifactKind.MODEL] = ArtifactKind.MODEL
    architecture: str
    dtype: str
    parameters: int
    vocab_size: int
    context_length: int


@dataclass(frozen=True, kw_only=True)
class Adapter(Artifact):
    """A PEFT LoRA folder on one base; `base` is the base's artifact id, `base_digest` its content."""

    kind: Literal[ArtifactKind.ADAPTER] = ArtifactKind.ADAPTER
    base: str
    base_name: str
    base_digest: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    parameters: int


@dataclass(frozen=True, kw_only=True)
class File(Artifact):
    """One file as it was sent or made, kept for the OpenAI API; its name there is its name here."""

    kind: Literal[ArtifactKind.FILE] = ArtifactKind.FILE
    filename: str
    purpose: str
    # Why its rows cannot be learned.
    problem: str | None = None
    # In seconds since 1970.
    expires_at: int | None = None

    @property
    def place(self) -> Path:
        return self.path / self.files[0].path


AnyArtifact: TypeAlias = Dataset | Model | Adapter | File


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An artifact not yet published: a staged folder and what is known about it.

    `facts` are the fields that Dataset, Model or Adapter add to Artifact.
    """

    kind: ArtifactKind
    name: str
    folder: Path
    facts: JsonObject
    parents: tuple[Parent, ...] = ()
    recipe: JsonObject = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    replace: bool = False


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job ended badly: `code` from the error tree, or `runner_died`, or `bug`."""

    code: str
    message: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """A spec accepted. Ids are UUIDv7, so they sort by time."""

    id: str
    kind: str
    spec: JsonObject
    state: JobState
    priority: int = 0
    needs: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    cancel_requested: bool = False
    pause_requested: bool = False
    idempotency_key: str | None = None
    aliases: tuple[str, ...] = ()
    # What a door was told beside the spec, kept for that door.
    labels: JsonObject = field(default_factory=dict)
    result: JsonObject | None = None
    error: Failure | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class EventType(StrEnum):
    STATE = "state"
    PROGRESS = "progress"
    METRIC = "metric"
    LOG = "log"
    ARTIFACT = "artifact"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of a job's story; `seq` starts at 1 and has no gap."""

    job_id: str
    seq: int
    at: datetime
    type: EventType
    body: JsonObject


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A wish that a model be served: `model` is an artifact id; adapters of it are served beside it.

    `engine_reason` is why this engine serves it; `quantization` is what its weights are kept as.
    """

    id: str
    model: str
    model_name: str
    engine: str
    engine_reason: str = ""
    quantization: str = "none"
    device: str
    replicas: int = 1
    created_at: datetime
