"""Model stock: as far from the base towards the mean of the models as these agree with each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from modelworks.merge.gram import norms, prepare_mix
from modelworks.merge.method import Method, Params

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Combine, TensorLook


class ModelStockParams(Params):
    filter_wise: bool = Field(False, description="one share for each row instead of one for the whole tensor")


def prepare(look: TensorLook, params: ModelStockParams, _each: Sequence[ModelStockParams]) -> Combine:
    """Interpolate: t mean(e) + (1-t) b with t = M c / (1 + (M-1) c) (Jang et al. 2024, arXiv:2403.19522, eq. 7).

    c is the mean cosine of every two task vectors. Where 1 + (M-1) c is 0, t is 0.
    """
    return prepare_mix(look, _factors, "rows" if params.filter_wise else "tensor", on_base=True)


def _factors(products: Tensor) -> Tensor:
    import torch

    count, lengths = len(products), norms(products)
    one, other = torch.triu_indices(count, count, 1)
    cosine = products[one, other] / (lengths[one] * lengths[other]).clamp(min=1e-6)
    mean = cosine.clamp(-1, 1).mean(0)
    below = 1 + (count - 1) * mean
    share = torch.where(below.abs() < 1e-6, 0, mean / below)  # t / M
    return share.expand(count, *share.shape)


MODEL_STOCK = Method(
    "model_stock", ModelStockParams, prepare=prepare, space="weights", reads_base=True, models=(2, None), reads=2,
    paper="arXiv:2403.19522",
)  # fmt: skip
