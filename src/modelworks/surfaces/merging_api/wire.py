"""Bodies of the Model Merging API. What is done otherwise than asked stands in `warnings`, and in the job's log."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from modelworks.core.nouns import JsonObject

STATUS = Literal["pending", "running", "completed", "failed"]
EXAMPLE: JsonDict = {
    "base_model": "Qwen/Qwen2.5-0.5B",
    "models_to_merge": ["InfiX-ai/Qwen-base-0.5B-code", "InfiX-ai/Qwen-base-0.5B-algebra"],
    "merge_method": "task_arithmetic",
    "output_dir": "./merged_output",
    "scaling_coefficient": 0.3,
    "use_gpu": True,
    "param_value_mask_rate": 0.8,
    "exclude_param_names_regex": [],
}
FETCHED = (
    "refused: a merge takes models that are here and loads nothing from the hub; fetch them first, modelworks pull"
)


class MergeIn(BaseModel):
    # Unknown keys are kept, so that they can be told.
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, json_schema_extra={"examples": [EXAMPLE]})

    base_model: str = Field(min_length=1, description="supported: a model that is here, by name, hub id, id or path")
    models_to_merge: list[str] = Field(min_length=1, description="supported: models, or adapters of the base")
    merge_method: str = Field(description="translated: see /api/methods; task_arithmetic is task_arithmetic_bf16")
    output_dir: str = Field("./api/output", description="supported: the result is also at OUTPUT_DIR/JOB_ID")
    scaling_coefficient: float = Field(1.0, description="supported: by methods that have it; 1 is as good as 1.0")
    use_gpu: bool = Field(False, description="supported: where there is none, the CPU is taken and told in warnings")
    param_value_mask_rate: float = Field(0.8, description="supported: by methods that have it")
    weight_mask_rates: list[float] | None = Field(
        None, description="supported: by mask_merging, one rate a model; default 0.5 each"
    )
    exclude_param_names_regex: list[str] = Field([], description="supported: matched from the start of the name")
    mask_strategy: Literal["random", "magnitude"] = Field("magnitude", description="supported: by mask_merging")
    mask_apply_method: str = Field("average_merging", description="supported: by mask_merging")
    use_weight_rescale: bool = Field(True, description="supported: by mask_merging")
    seed: int = Field(42, description="supported: by methods that draw at random; not in their document")
    params: JsonObject | None = Field(None, description="supported: further parameters, by name; not in their document")
    weights: list[float] | None = Field(None, description="supported: by methods that take them; not in their document")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="supported: of the result, where the method leaves a choice; not in their document"
    )
    hf_token: str | None = Field(None, description=f"{FETCHED}; never stored and never told again")
    use_hf_auth: bool = Field(False, description=FETCHED)
    local_files_only: bool = Field(False, description="translated: as true, whatever is asked; nothing is fetched")


class QueuedOut(BaseModel):
    job_id: str = Field(description="supported: a UUID")
    status: Literal["pending"] = Field("pending", description="supported")
    message: str = Field("Merging job started", description="supported")
    check_status: str = Field(description="supported: where to ask how far it is")
    warnings: list[str] = Field(description="supported: what is done otherwise than asked; not in their document")


class JobOut(BaseModel):
    job_id: str = Field(description="supported: a UUID")
    status: STATUS = Field(description="translated: cancelled is failed, paused is pending")
    created_at: str = Field(description="supported: ISO 8601 with milliseconds and Z")
    started_at: str | None = Field(description="supported: the same")
    completed_at: str | None = Field(description="supported: the same; also of a job that failed")
    error_message: str | None = Field(description="supported: why it failed, or cancelled")
    output_path: str | None = Field(description="supported: relative to the workspace; null until it is completed")
    params: JsonObject = Field(description="supported: as asked, with every default, without hf_token")
    progress: float = Field(description="supported: percent; not in their document")
    warnings: list[str] = Field(description="supported: what is done otherwise than asked; not in their document")


class JobsOut(BaseModel):
    jobs: list[JobOut] = Field(description="supported: merges alone, newest first")


class DownloadOut(BaseModel):
    job_id: str = Field(description="supported: a UUID")
    output_path: str | None = Field(description="supported: relative to the workspace")
    message: str = Field(description="supported: where the model is, and how to fetch it")
    archive_url: str = Field(description="supported: the model's folder as a tar; not in their document")
    size_bytes: int = Field(description="supported: of the tar; not in their document")


class MethodOut(BaseModel):
    name: str = Field(description="supported")
    description: str = Field(description="supported")
    parameters: dict[str, JsonObject] = Field(description="supported: type, default and description of each, by name")


class MethodsOut(BaseModel):
    methods: list[MethodOut] = Field(description="supported: the document's five first, then all others")
