"""Supervised fine-tuning: learn to give the answers of the dataset."""

from __future__ import annotations

from modelworks.data.record import Conversation, Text
from modelworks.train.strategy import Setup, Strategy, Training
from modelworks.train.supervised import SupervisedParams, build_supervised


def build(setup: Setup) -> Training:
    return build_supervised(setup)


SFT = Strategy("sft", SupervisedParams, build, (Conversation, Text), {"lora": 2e-4, "full": 2e-5})
