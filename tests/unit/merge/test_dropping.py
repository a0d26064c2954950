from __future__ import annotations

import torch

from modelworks.merge.dropping import DroppingParams, RankedParams, check_chances, keep_at_random, keep_by_rank
from modelworks.merge.selection import Keep
from pieces import Looked

SIZE = 1 << 16
DELTAS = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(0))


def looked(deltas: torch.Tensor, shape: tuple[int, ...] | None = None, elements: int = 1 << 14) -> Looked:
    return Looked(deltas, torch.zeros(deltas.shape[1]), elements, whole_shape=shape)


def kept(keep: Keep, look: Looked) -> torch.Tensor:
    return torch.cat([keep(piece) for piece in look.pieces()], 1)


def test_what_is_kept_is_divided_by_its_chance() -> None:
    each = [DroppingParams(density=0.25), DroppingParams(density=1)]

    found = kept(keep_at_random(looked(DELTAS), each[0], each), looked(DELTAS))

    share = (found[0] != 0).float().mean()
    # three standard deviations: 3 * sqrt(0.25 * 0.75 / 65536)
    assert abs(share - 0.25) < 0.006
    assert torch.equal(found[0], torch.where(found[0] != 0, DELTAS[0] * 4, 0.0))
    assert torch.equal(found[1], DELTAS[1])


def test_without_rescaling_it_stays_as_it_is_and_a_density_of_zero_keeps_nothing() -> None:
    each = [DroppingParams(density=0.5, rescale=False), DroppingParams(density=0)]

    plain = kept(keep_at_random(looked(DELTAS), each[0], each), looked(DELTAS))
    scaled = kept(keep_at_random(looked(DELTAS), each[1], each), looked(DELTAS))

    assert torch.equal(plain[0], torch.where(plain[0] != 0, DELTAS[0], 0.0))
    assert not plain[1].any()
    assert not scaled[1].any()


def test_by_l1_the_sum_of_magnitudes_is_restored() -> None:
    params = DroppingParams(density=0.1, rescale_norm="l1")

    found = kept(keep_at_random(looked(DELTAS), params, [params] * 2), looked(DELTAS))

    torch.testing.assert_close(found.abs().sum(1), DELTAS.abs().sum(1))


def test_by_l1_the_factor_is_the_same_in_pieces_of_any_size() -> None:
    params = DroppingParams(density=0.1, rescale_norm="l1")
    deltas = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(1))
    whole = looked(deltas, elements=100_000)
    expected = kept(keep_at_random(whole, params, [params] * 2), whole)

    for elements in (576 * 57, 1 << 15, 70_001):
        look = looked(deltas, elements=elements)
        assert torch.equal(kept(keep_at_random(look, params, [params] * 2), look), expected)


def test_the_larger_in_its_row_the_likelier_it_is_kept() -> None:
    params = RankedParams(density=0.5, epsilon=0.5, rescale=False)
    look = looked(DELTAS, (256, 256))

    found = kept(keep_by_rank(look, params, [params] * 2), look)

    magnitude, stays = DELTAS.view(-1, 256).abs(), (found != 0).view(-1, 256).float()
    by_rank = stays.gather(1, magnitude.argsort(1)).mean(0)  # (256): the share kept of each rank over 512 rows
    expected = torch.linspace(0, 1, 256)
    assert by_rank[0] == 0
    assert by_rank[-1] == 1
    # five standard deviations of 512 tosses
    assert ((by_rank - expected).abs() < 5 * 0.5 / 512**0.5).all()


def test_ranks_divide_by_their_own_chances_and_equal_ones_stand_in_order() -> None:
    params = RankedParams(density=0.5, epsilon=0.25)
    look = looked(torch.full((1, 4), 2.0).repeat(1, 64), (64, 4))

    found = kept(keep_by_rank(look, params, [params]), look).view(64, 4)

    # chances 1/4, 5/12, 7/12, 3/4
    for column, chance in zip(found.T, (1 / 4, 5 / 12, 7 / 12, 3 / 4), strict=True):
        torch.testing.assert_close(column[column != 0].mean().item(), 2 / chance)


def test_a_vector_is_one_row_whatever_its_pieces() -> None:
    params = RankedParams(density=0.5)

    one = kept(keep_by_rank(looked(DELTAS), params, [params] * 2), looked(DELTAS))
    many = kept(keep_by_rank(looked(DELTAS, None, 999), params, [params] * 2), looked(DELTAS, None, 77))

    assert torch.equal(one, many)


def test_rows_of_one_element_and_empty_tensors_are_natural() -> None:
    params = RankedParams(density=0.5)
    single, empty = looked(DELTAS[:, :4], (4, 1)), looked(DELTAS[:, :0])

    assert kept(keep_by_rank(single, params, [params] * 2), single).isfinite().all()
    keep_by_rank(empty, params, [params] * 2)
    keep_at_random(empty, DroppingParams(rescale_norm="l1"), [params] * 2)


def test_chances_beyond_zero_and_one_are_refused() -> None:
    assert not check_chances(RankedParams(density=0.8), 2)
    assert not check_chances(RankedParams(density=1), 2)
    (problem,) = check_chances(RankedParams(density=0.9), 2)
    assert "0.75 to 1.05" in problem.what
    assert "at most 0.1" in problem.remedy
