"""LoRA extraction: what a fine-tuned model learnt, as an adapter of its base."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from modelworks.core.errors import Problem
from modelworks.core.patterns import compile_pattern
from modelworks.merge.factors import Factors, Matrix, RankCut, decompose
from modelworks.merge.layers import layer_of
from modelworks.merge.method import Method, Params

# A LoRA of an embedding is of another kind, and engines that serve adapters take none.
_EMBEDDINGS = ("embed", "wte.", "wpe.")


class LoraExtractParams(RankCut, Params):
    include: tuple[str, ...] = Field(
        (), description="patterns (RE2), matched from the start, of the matrices to take; default: all in the layers"
    )


def factor(matrix: Matrix, params: LoraExtractParams, _each: Sequence[LoraExtractParams]) -> Factors:
    """Keep the largest singular values of W - W_base (Hu et al. 2021, arXiv:2106.09685, turned round)."""
    return decompose(matrix.delta(0), params, matrix.name)


def covers(name: str, params: LoraExtractParams) -> bool:
    import re2

    if not params.include:
        return layer_of(name) is not None
    return not any(part in name for part in _EMBEDDINGS) and any(re2.match(pattern, name) for pattern in params.include)


def check(params: LoraExtractParams, count: int) -> Sequence[Problem]:
    found = list(RankCut.problems(params, count))
    for pattern in params.include:
        try:
            compile_pattern(pattern)
        except ValueError as error:
            found.append(Problem("include", str(error)))
    return found


LORA_EXTRACT = Method(
    "lora_extract", LoraExtractParams, factor=factor, space="delta", models=(1, 1), covers=covers, check=check
)
