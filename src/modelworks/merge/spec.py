"""What somebody asks of a merge."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field, FiniteFloat

from modelworks.core.nouns import JsonObject
from modelworks.core.spec import Spec

OutputDtype: TypeAlias = Literal["float32", "bfloat16", "float16"]


class SliceSource(Spec):
    """Layers of one model, as they go into a slice."""

    model: str = Field(description="one of the models, or the base")
    layer_range: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = Field(
        description="from the first to before the last, counted from 0"
    )
    params: JsonObject = Field(default_factory=dict, description="the method's parameters for this model here")


class Slice(Spec):
    """A run of layers of the result: as many layers of each source, merged one by one."""

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    params: JsonObject = Field(default_factory=dict, description="the method's parameters in this slice")


class NoEmbedding(Spec):
    """A row of zeros."""

    kind: Literal["zero"]


class TokenEmbedding(Spec):
    """The row of a token of one of the models, by the token or by its number."""

    kind: Literal["model_token"] = "model_token"
    model: str = Field(description="one of the models, or the base")
    token: str | None = None
    token_id: int | None = Field(None, ge=0)


class TokenRule(Spec):
    """Where a token's embedding comes from, in the models that do not have the token."""

    source: str | NoEmbedding | TokenEmbedding = Field(description="a model's own row of the token, another row, or 0")
    force: bool = Field(False, description="also in the models that have the token")


class TokenizerChoice(Spec):
    """Which tokens the result has, and their embeddings."""

    source: str = Field("union", description="base, first, union, or one of the models")
    tokens: dict[str, TokenRule] = Field(default_factory=dict, description="tokens to add, or to embed otherwise")
    pad_to_multiple_of: int | None = Field(
        None, ge=1, description="trim the embeddings to the tokens, up to a multiple; default: as many rows as before"
    )


class MergeSpec(Spec):
    """Merge models of one architecture, or adapters of one base, into one model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "method": "task_arithmetic",
                    "base": "smollm2-135m",
                    "models": ["me/first", "me/second"],
                    "params": {"scaling_coefficient": 0.8},
                    "name": "me/both",
                }
            ]
        }
    )

    method: str = Field("task_arithmetic", description="how: average, task_arithmetic, ...")
    base: str | None = Field(None, description="the model that the others were made from; average can do without")
    models: tuple[str, ...] = Field(
        min_length=1, description="what to merge: models, or adapters of the base; MODEL+ADAPTER is both"
    )
    weights: tuple[FiniteFloat, ...] | None = Field(
        None, description="one factor a model, where the method takes them; may be negative; default 1 each"
    )
    params: JsonObject = Field(
        default_factory=dict,
        description="the method's own parameters; a number may be a gradient over the layers or a list of "
        "{filter, value} by tensor name",
    )
    model_params: tuple[JsonObject, ...] | None = Field(
        None, description="one mapping a model: its own weight, density ... over those in params"
    )
    slices: tuple[Slice, ...] = Field((), description="build the result from runs of layers instead of whole models")
    exclude_param_names_regex: tuple[str, ...] = Field(
        (), description="tensors left as in the base: patterns (RE2) matched from the start of the name"
    )
    dtype: OutputDtype | None = Field(None, description="of the result; default: as the base")
    tokenizer: str | TokenizerChoice | None = Field(
        None,
        description="where tokenizers differ: base, first, union, or the model whose tokens the result has; embeddings "
        "are aligned by token. Default: as the base, and all must agree",
    )
    chat_template: str | None = Field(
        None, description="of the result: auto (the one most models have), one of the models, or Jinja"
    )
    strict: bool = Field(
        False, description="refuse models that seem not to be made from the base, or equal to another, not only warn"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute; the result is the same")
    report: Literal["sample", "full", "none"] = Field(
        "sample", description="how much of the models to look at for norms, cosines and conflicts"
    )
    name: str | None = Field(None, description="name to publish it under; default: BASE-METHOD")
    replace: bool = Field(False, description="let the name move to this model if it is taken")
    output_dir: str | None = Field(
        None, description="also place the result at OUTPUT_DIR/JOB_ID, relative to the workspace"
    )

    @property
    def names(self) -> tuple[str, ...]:
        """Every model and adapter that is named, each once, the base first."""
        named = [*([self.base] if self.base else []), *(part for name in self.models for part in name.split("+"))]
        return tuple(dict.fromkeys(named))

    @property
    def published_name(self) -> str:
        return (
            self.name
            or f"{(self.base or self.models[0]).rstrip('/').rsplit('/', 1)[-1].replace(':', '-')}-{self.method}"
        )
