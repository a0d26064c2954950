"""Continued pre-training: plain text, every token of it, in full blocks (Gururangan et al. 2020, arXiv:2004.10964)."""

from __future__ import annotations

from modelworks.data.blocks import encode_blocks
from modelworks.data.record import Text
from modelworks.train.strategy import Params, Setup, Strategy, Training
from modelworks.train.supervised import build_supervised


class PretrainParams(Params):
    """Nothing to choose: all of the text is learned."""


def build(setup: Setup) -> Training:
    return build_supervised(setup, encode=encode_blocks)


PRETRAIN = Strategy("pretrain", PretrainParams, build, (Text,), {"lora": 1e-4, "full": 5e-5}, num_train_epochs=1)
