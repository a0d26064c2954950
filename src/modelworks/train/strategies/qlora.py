"""Supervised fine-tuning of an adapter on a base kept in 4 bits (Dettmers et al. 2023, arXiv:2305.14314)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Literal

from pydantic import Field

from modelworks.core.errors import Problem, Unsupported
from modelworks.core.nouns import AnyArtifact
from modelworks.data.record import Conversation, Text
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Settled, Setup, Strategy, Training
from modelworks.train.supervised import SupervisedParams, build_supervised
from modelworks.weights.loading import Quantization


class QloraParams(SupervisedParams):
    quantization: Literal["nf4", "fp4"] = Field("nf4", description="what the frozen weights are rounded to")
    double_quant: bool = Field(True, description="keep the scales of the blocks in 8 bits as well")


def build(setup: Setup) -> Training:
    params = QloraParams.model_validate(setup.params)
    return build_supervised(setup, Quantization(params.quantization, params.double_quant))


def check(_spec: TrainSpec, _params: QloraParams, _inputs: Mapping[str, AnyArtifact], _: Settled) -> Iterator[Problem]:
    if find_spec("bitsandbytes") is None:
        raise Unsupported("qlora needs bitsandbytes, which is not installed: pip install bitsandbytes; or choose sft")
    return iter(())


QLORA = Strategy("qlora", QloraParams, build, (Conversation, Text), {"lora": 2e-4}, check)
