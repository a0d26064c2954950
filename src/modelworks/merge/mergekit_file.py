"""The shape of mergekit's YAML, as of its version 0.1.5."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from modelworks.core.spec import Spec


def _reference(value: object) -> object:
    """A model as text, PATH[@REVISION][+LORA]; mergekit also takes it in parts."""
    if not isinstance(value, dict):
        return value
    path, lora = value.get("model", value.get("path")), value.get("lora")
    revision = value.get("revision")
    parts = [_reference(part) for part in (path, lora) if part is not None]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError("expected PATH, PATH@REVISION or PATH+LORA")
    return "+".join(str(part) for part in parts) + (f"@{revision}" if revision else "")


_Reference = Annotated[str, BeforeValidator(_reference)]
_Parameters = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]


class Model(Spec):
    model: _Reference
    parameters: _Parameters = Field(default_factory=dict)


class Source(Model):
    layer_range: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class Slice(Spec):
    sources: tuple[Source, ...]
    base_model: _Reference | None = None
    residual_weight: float | None = None
    parameters: _Parameters = Field(default_factory=dict)


class File(Spec):
    merge_method: str
    models: tuple[Model, ...] = ()
    slices: tuple[Slice, ...] = ()
    modules: Any = None
    base_model: _Reference | None = None
    parameters: _Parameters = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: dict[str, Any] | None = None
    chat_template: str | None = None
