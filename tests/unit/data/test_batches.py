from __future__ import annotations

from modelworks.data.batches import order_by_length, pad_right


def test_batches_are_of_like_length_and_every_row_comes_once() -> None:
    lengths = [10 * (index % 7) + 1 for index in range(422)]

    order = order_by_length(lengths, batch_size=4, seed=1)

    assert sorted(order) == list(range(422))
    batches = [order[start : start + 4] for start in range(0, 422, 4)]
    real = sum(lengths)
    computed = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    # At random, every batch is as long as its longest row: about 1.6 times too much.
    assert computed / real < 1.1
    assert len(batches[-1]) == 2


def test_the_order_follows_from_the_seed() -> None:
    lengths = list(range(50))

    assert order_by_length(lengths, 4, seed=1) == order_by_length(lengths, 4, seed=1)
    assert order_by_length(lengths, 4, seed=1) != order_by_length(lengths, 4, seed=2)


def test_padding_goes_behind_and_is_never_learned() -> None:
    batch = pad_right([([5, 6], [-100, 6]), ([7, 8, 9], [-100, -100, 9])])

    assert batch["input_ids"].tolist() == [[5, 6, 0], [7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, 6, -100], [-100, -100, 9]]
