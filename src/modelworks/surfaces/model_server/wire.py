"""Bodies of the Model Server. A key that its document does not name is ignored, as its server does."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from modelworks.core.nouns import JsonObject

_CALL: JsonObject = {
    "messages": [
        {"role": "user", "content": "hello"},
        {"role": "agent", "content": "hi"},
        {"role": "user", "content": "how are you?"},
    ],
    "temperature": 0.7,
}


class MessageIn(BaseModel):
    role: Literal["user", "agent", "assistant", "system"] = Field(
        description="translated: agent is the assistant of a chat template; an entry of one's own gets it as sent. "
        "assistant and system are taken too"
    )
    content: str = Field(description="supported")


class CallIn(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [_CALL]})

    messages: list[MessageIn] = Field(min_length=1, description="supported; refused where empty")
    temperature: float | None = Field(
        None, ge=0, le=100, allow_inf_nan=False, description="supported: 0.7 where absent; 0 takes the likeliest token"
    )
    max_tokens: int | None = Field(
        None, ge=1, le=1_000_000, description="supported, though not in the document: longest answer; absent: no limit "
        "but the model's context. For an entry of one's own a token is a word"
    )  # fmt: skip


class AddIn(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"device": "cpu"}, {}]})

    device: str | None = Field(
        None, description="supported: cpu, cuda, cuda:N or auto; refused where the machine has no such device. Absent "
        "it is auto, the GPU with the fewest entities or else the CPU, where the document has cuda:0"
    )  # fmt: skip


class CallOut(BaseModel):
    status: Literal[0] = Field(0, description="supported; -1 with a `message`, and a 4xx or 5xx code, for a failure")
    result: str = Field(description="supported: the answer")


class DoneOut(BaseModel):
    status: Literal[0] = Field(0, description="supported; -1 with a `message`, and a 4xx or 5xx code, for a failure")


class EntityOut(BaseModel):
    device: str = Field(description="supported: cpu or cuda:N")
    pid: int | None = Field(description="supported: its process, while it has one")
    state: str = Field(description="supported: wanted, starting, ready, draining, gone or failed")
    outstanding: int = Field(description="supported: calls it has not answered yet")
    restarts: int = Field(description="supported: how often its process died and was started again")
    error: str | None = Field(description="supported: why it was given up")


class ModelOut(BaseModel):
    kind: Literal["model", "adapter", "entry"] = Field(description="supported: an adapter has the entities of its base")
    state: str = Field(description="supported: ready if one entity is; unloaded where there is none")
    replicas: int = Field(description="supported: how many entities it has")
    device: list[str] = Field(description="supported: the device of each entity")
    entities: list[EntityOut] = Field(description="supported")
    error: str | None = Field(description="supported: why the first failed entity was given up")


class InfoOut(BaseModel):
    status: Literal[0] = Field(0, description="supported")
    info: dict[str, ModelOut] = Field(description="supported: every model, adapter and entry, loaded or not, by name")
