"""Bodies of the SLM API. A key that its document does not name is ignored, as its server does."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from modelworks.core.spec import example


class GenerateIn(BaseModel):
    model_config = example(
        prompt="Explain what machine learning is", max_new_tokens=100, temperature=0.7, do_sample=True
    )

    prompt: str = Field(
        min_length=1, description="translated: becomes the instruction of an alpaca prompt; refused where empty"
    )
    max_new_tokens: int = Field(
        100, ge=1, le=1_000_000, description="supported; refused where prompt and answer are longer than the context"
    )
    temperature: float = Field(
        0.7, ge=0, le=100, allow_inf_nan=False, description="supported: 0.0 takes the likeliest token each time"
    )
    do_sample: bool = Field(True, description="translated: false is temperature 0.0")


class SettingsOut(BaseModel):
    max_new_tokens: int = Field(description="supported: as asked")
    temperature: float = Field(description="supported: as asked")
    do_sample: bool = Field(description="supported: as asked")


class GenerateOut(BaseModel):
    success: Literal[True] = Field(True, description="supported")
    prompt: str = Field(description="supported: as asked")
    response: str = Field(description="supported: the answer, without white space around it")
    full_response: str = Field(description="supported: the alpaca prompt and the answer")
    device: str = Field(description="supported: cpu or cuda")
    settings: SettingsOut = Field(description="supported")


class EventOut(BaseModel):
    """One event of a stream: a status, or a piece of the answer."""

    status: str | None = Field(None, description="supported: what is done now; the last is Response complete!")
    text: str | None = Field(None, description="supported: a word and the blanks behind it")
    full_text: str | None = Field(None, description="supported: the answer so far, without white space around it")
    is_complete: bool | None = Field(None, description="supported: true on the last piece")
    device_used: str | None = Field(None, description="supported: cpu or cuda, beside the last status")


class InfoOut(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_loaded: bool = Field(description="supported: whether it answers without loading anything")
    device: str = Field(description="supported: cpu or cuda, where the model is or would be")
    base_model: str = Field(description="translated: the base of what is served; the setting where nothing is here")
    lora_path: str | None = Field(description="translated: the adapter's name here; null for a base alone")
    cuda_available: bool = Field(description="supported: whether the driver lists a GPU")
    mps_available: Literal[False] = Field(
        False, description="supported: always false; no engine here uses Apple's GPUs"
    )


class LoadOut(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    success: Literal[True] = Field(True, description="supported")
    message: str = Field(description="supported")
    device: str = Field(description="supported: cpu or cuda")
    model_path: str = Field(description="translated: the name here of the adapter, or of a base alone")


class UnloadOut(BaseModel):
    success: Literal[True] = Field(True, description="supported: unloading twice is no error")
    message: str = Field(description="supported")


class ErrorOut(BaseModel):
    success: Literal[False] = Field(False, description="supported")
    error: str = Field(description="supported: what was found, and what to do; with a status of 400 or above")
