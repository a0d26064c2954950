"""What somebody asks of a merge."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import ConfigDict, Field, FiniteFloat

from modelworks.core.nouns import JsonObject
from modelworks.core.spec import Spec

OutputDtype: TypeAlias = Literal["float32", "bfloat16", "float16"]


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
    models: tuple[str, ...] = Field(min_length=1, description="what to merge: models, or adapters of the base")
    weights: tuple[FiniteFloat, ...] | None = Field(
        None, description="one factor a model, where the method takes them; may be negative; default 1 each"
    )
    params: JsonObject = Field(default_factory=dict, description="the method's own parameters")
    exclude_param_names_regex: tuple[str, ...] = Field(
        (), description="tensors left as in the base: patterns (RE2) matched from the start of the name"
    )
    dtype: OutputDtype | None = Field(None, description="of the result; default: as the base")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute; the result is the same")
    name: str | None = Field(None, description="name to publish it under; default: BASE-METHOD")
    replace: bool = Field(False, description="let the name move to this model if it is taken")
    output_dir: str | None = Field(
        None, description="also place the result at OUTPUT_DIR/JOB_ID, relative to the workspace"
    )

    @property
    def published_name(self) -> str:
        return (
            self.name
            or f"{(self.base or self.models[0]).rstrip('/').rsplit('/', 1)[-1].replace(':', '-')}-{self.method}"
        )
