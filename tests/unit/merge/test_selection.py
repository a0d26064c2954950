from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.merge import selection
from modelworks.merge.selection import find_cuts, keep_largest, keep_middle
from pieces import Looked, piece_of

# Many that are equal, zeros, the smallest there are, and neighbours that differ in their last bits only.
magnitudes = st.sampled_from([0.0, 1e-45, 3e-45, 1e-38, 0.5, 0.50000006, 0.5000001, 1.0, 1.0000001, 2.0, 3e38])
changes = st.tuples(magnitudes, st.sampled_from([1.0, -1.0])).map(lambda found: found[0] * found[1])
rows = st.integers(1, 40).flatmap(
    lambda size: st.lists(st.lists(changes, min_size=size, max_size=size), min_size=1, max_size=3)
)
shares = st.sampled_from([0.0, 1e-9, 0.01, 0.2, 0.5, 0.9, 0.999, 1.0])


@pytest.fixture(scope="module", autouse=True, params=[0, 1 << 20], ids=["of a large tensor", "of a small one"])
def whole(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test finds its cuts in both ways."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_WHOLE", request.param)
        yield


def sorted_and_kept(row: torch.Tensor, *, first: int, last: int, descending: bool) -> torch.Tensor:
    order = torch.sort(row.abs(), descending=descending, stable=True).indices[first:last]
    return torch.zeros_like(row).index_copy(0, order, row[order])


def looked(deltas: torch.Tensor, elements: int) -> Looked:
    return Looked(deltas, torch.zeros(deltas.shape[1]), elements)


@settings(deadline=None)
@given(values=rows, density=shares, elements=st.integers(1, 50), chunk=st.integers(1, 50))
def test_the_largest_are_those_that_a_stable_sort_puts_first(
    values: list[list[float]], density: float, elements: int, chunk: int
) -> None:
    deltas = torch.tensor(values)
    size = deltas.shape[1]
    count = max(1, int(density * size)) if density else 0

    keep = keep_largest(looked(deltas, elements), [density] * len(values))
    kept = torch.cat([keep(piece) for piece in looked(deltas, chunk).pieces()], 1)

    expected = [sorted_and_kept(row, first=0, last=count, descending=True) for row in deltas]
    assert torch.equal(kept, torch.stack(expected))


@settings(deadline=None)
@given(values=rows, density=shares, gamma=shares, elements=st.integers(1, 50), chunk=st.integers(1, 50))
def test_the_middle_is_what_a_stable_sort_puts_there(
    values: list[list[float]], density: float, gamma: float, elements: int, chunk: int
) -> None:
    deltas = torch.tensor(values)
    size = deltas.shape[1]
    count = int(density * size)
    first = max(0, size - count - int(gamma * size)) if density < 1 else 0

    keep = keep_middle(looked(deltas, elements), [density] * len(values), [gamma] * len(values))
    kept = torch.cat([keep(piece) for piece in looked(deltas, chunk).pieces()], 1)

    expected = [sorted_and_kept(row, first=first, last=first + count, descending=False) for row in deltas]
    assert torch.equal(kept, torch.stack(expected))


def test_each_model_has_its_own_density() -> None:
    deltas = torch.tensor([[1.0, -2.0, 3.0, -4.0]]).repeat(3, 1)

    kept = keep_largest(looked(deltas, 3), [0.25, 0.5, 1.0])(piece_of(deltas=deltas.tolist()))

    assert kept.tolist() == [[0, 0, 0, -4], [0, 0, 3, -4], [1, -2, 3, -4]]


@pytest.mark.parametrize("keep", [keep_largest, lambda look, densities: keep_middle(look, densities, [0.1])])
def test_of_nothing_nothing_is_kept(keep: type) -> None:
    assert keep(looked(torch.zeros(1, 0), 5), [0.5])(piece_of(deltas=[[]])).shape == (1, 0)


def test_large_random_tensors_agree_with_a_sort() -> None:
    deltas = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0)).bfloat16().float()

    keep = keep_largest(looked(deltas, 1 << 15), [0.2, 0.37])
    kept = torch.cat([keep(piece) for piece in looked(deltas, 9999).pieces()], 1)

    for row, all_of_it, count in zip(kept, deltas, (20_000, 37_000), strict=True):
        assert torch.equal(row, sorted_and_kept(all_of_it, first=0, last=count, descending=True))


@settings(deadline=None)
@given(values=rows, elements=st.integers(1, 50), first_above=st.booleans(), data=st.data())
def test_the_same_cuts_are_found_with_little_room(
    values: list[list[float]], elements: int, first_above: bool, data: st.DataObject
) -> None:
    look = looked(torch.tensor(values), elements)
    counts = st.integers(1, look.size - 1)
    wanted = [(row, data.draw(counts)) for row in range(len(values))] if look.size > 1 else []
    expected = find_cuts(look, wanted, first_above)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_MOST_INSIDE", 2)
        assert find_cuts(look, wanted, first_above) == expected


def test_a_sample_that_misleads_and_too_many_that_are_equal_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = torch.randn(1, 11 << 15, generator=torch.Generator().manual_seed(0))
    deltas[0, ::11] = 9.0  # just what is sampled
    deltas[0, 1::11] = 0.25
    look = looked(deltas, deltas.shape[1])
    expected = {count: sorted_and_kept(deltas[0], first=0, last=count, descending=True) for count in (20_000, 300_000)}

    for most_inside in (1 << 21, 10):
        monkeypatch.setattr(selection, "_MOST_INSIDE", most_inside)
        for count, row in expected.items():
            (kept,) = keep_largest(look, [(count + 0.5) / look.size])(next(look.pieces()))
            assert torch.equal(kept, row)
