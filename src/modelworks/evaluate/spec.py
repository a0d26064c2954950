"""What may be asked of an evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modelworks.core.spec import Spec, example


class EvaluateSpec(Spec):
    """Measure models on the held-out rows of datasets."""

    model_config = example(models=["smollm2-135m", "me/first"], datasets=["mine"], limit=50)

    models: tuple[str, ...] = Field(min_length=1, description="models or adapters to compare")
    datasets: tuple[str, ...] = Field(min_length=1, description="datasets whose held-out rows are used")
    metrics: tuple[str, ...] = Field(
        ("perplexity", "exact_match"), min_length=1, description="what to measure, e.g. perplexity exact_match"
    )
    limit: int | None = Field(None, ge=1, description="use the first so many rows of each dataset; by default all")
    max_new_tokens: int = Field(256, ge=1, le=8192, description="longest answer that is generated")
    max_length: int = Field(2048, ge=8, description="tokens of a row that are read; its end is cut off")
    batch_size: int = Field(16, ge=1, description="rows computed together")
    samples: int = Field(3, ge=0, le=100, description="generated answers to keep for each model and dataset")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the processor computes in it")
