"""What somebody asks of a search."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias

from pydantic import Field, field_serializer, field_validator

from modelworks.core.nouns import JsonObject, JsonValue
from modelworks.core.spec import Spec, example
from modelworks.evaluate.spec import EvaluateSpec
from modelworks.merge.spec import MergeSpec

# Two numbers are a range; anything else is a choice.
Values: TypeAlias = tuple[JsonValue, ...]


class SearchSpec(Spec):
    """Find the weights and densities with which a merge does best on held-out rows; publish that merge."""

    model_config = example(
        recipe={"base": "smollm2-135m", "models": ["me/first", "me/second"]}, datasets=["mine"], metrics=["perplexity"],
        trials=20, space={"weights": [0, 1.5]}, name="me/best",
    )  # fmt: skip

    recipe: MergeSpec = Field(description="the merge to begin with: it is tried as it stands, before any other")
    datasets: tuple[str, ...] = Field(min_length=1, description="datasets whose held-out rows are used")
    metrics: tuple[str, ...] = Field(
        ("perplexity",), min_length=1, description="what to improve; with several, the Pareto front is told"
    )
    each_dataset: bool = Field(
        False, description="let each dataset be a goal of its own, instead of the mean over all of them"
    )
    trials: int = Field(20, ge=1, le=1000, description="how many merges to try beside the recipe itself")
    space: dict[str, Values] = Field(
        default_factory=dict,
        description="what to change, as NAME=LOW:HIGH or NAME=A,B,C: weights, weights.0, params.density, "
        "model_params.density (one for each model) ...; default: every weight from 0 to 1.5, a density from 0.1 to 1",
    )
    seed: int = Field(0, ge=0, description="the same seed gives the same trials")
    limit: int | None = Field(
        None, ge=1, description="choose by so many rows of each dataset and report on as many others; default: halves"
    )
    max_new_tokens: int = Field(256, ge=1, le=8192, description="longest answer that is generated")
    max_length: int = Field(2048, ge=8, description="tokens of a row that are read; its end is cut off")
    batch_size: int = Field(16, ge=1, description="rows computed together")
    dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="what to measure in; auto as in evaluate")
    name: str | None = Field(None, description="name to publish the best under; default: the recipe's")
    replace: bool = Field(False, description="let the name move to this model if it is taken")

    @property
    def published_name(self) -> str:
        return self.name or self.recipe.published_name

    def measuring(self) -> EvaluateSpec:
        """The evaluation that every trial is put to."""
        return EvaluateSpec(
            models=(self.recipe.names[0],), datasets=self.datasets, metrics=self.metrics, samples=0,
            max_new_tokens=self.max_new_tokens, max_length=self.max_length, batch_size=self.batch_size,
            device=self.recipe.device, dtype=self.dtype,
        )  # fmt: skip

    @field_serializer("recipe", when_used="json")
    def _short(self, recipe: MergeSpec) -> JsonObject:
        return recipe.model_dump(mode="json", exclude_defaults=True)

    @field_validator("space", mode="before")
    @classmethod
    def _read(cls, space: Any) -> Any:
        return {key: _values_of(text) for key, text in space.items()} if isinstance(space, dict) else space


def _values_of(written: Any) -> Any:
    """`0:1.5` and `a,b` in words of JSON."""
    if isinstance(written, str):
        return tuple(_scalar(part) for part in written.split(":" if ":" in written else ","))
    # YAML reads 0:1.5 as minutes and seconds, i.e. a number.
    if isinstance(written, int | float):
        raise ValueError(f"{written} is no range; write [0, 1.5]")
    return written


def _scalar(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return text.strip()
    return value
