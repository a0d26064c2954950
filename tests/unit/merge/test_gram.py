from __future__ import annotations

import pytest
import torch

from modelworks.merge.gram import Vectors, prepare_mix
from pieces import Looked

ROWS = torch.randn(3, 8 * 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("vectors", "axes"), [("tensor", (1, 2)), ("rows", (2,)), ("columns", (1,))])
@pytest.mark.parametrize("elements", [40, 10])
def test_factors_follow_from_the_inner_products_of_all_pieces(
    vectors: Vectors, axes: tuple[int, ...], elements: int
) -> None:
    look = Looked(ROWS, elements=elements, whole_shape=(8, 5))
    one, two, three = ROWS.view(3, 8, 5)

    combine = prepare_mix(look, lambda products: products[[0, 0, 2], [1, 0, 1]], vectors)
    found = torch.cat([combine(piece) for piece in look.pieces()]).view(8, 5)

    def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x * y).sum([axis - 1 for axis in axes], keepdim=True)

    expected = product(one, two) * one + product(one, one) * two + product(three, two) * three
    torch.testing.assert_close(found, expected)


def test_a_tensor_without_elements_is_no_trouble() -> None:
    look = Looked(torch.zeros(2, 0), whole_shape=(0, 5))

    prepare_mix(look, lambda products: products[0], "columns")

    assert not list(look.pieces())
