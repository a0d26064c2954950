"""Who computes what in the next step."""

from __future__ import annotations

from collections.abc import Callable

from modelworks.core.generation import GenerateRequest
from modelworks.serve.native.detokenize import Detokenizer
from modelworks.serve.native.scheduler import Piece, Scheduler
from modelworks.serve.native.sequence import Sequence


def answer(name: str, length: int) -> Sequence:
    request = GenerateRequest(id=name, model="m", prompt="")
    return Sequence(request, list(range(length)), length, 1000, Detokenizer(lambda ids: ""))


def scheduler(
    slots: int = 4, tokens: int = 10, fits: Callable[[int, int], bool] = lambda slots, length: True
) -> Scheduler:
    return Scheduler(slots, tokens, fits)


def compute(pieces: list[Piece]) -> list[tuple[str, int]]:
    """Do as a step does: what is computed is in the cache, and who can gets one more token."""
    shown = [(piece.sequence.id, piece.count) for piece in pieces]
    for piece in pieces:
        gives = piece.gives_token
        piece.sequence.cached += piece.count
        if gives:
            piece.sequence.tokens.append(0)
    return shown


def test_a_long_prompt_is_read_in_pieces() -> None:
    one = scheduler(tokens=10)
    one.add(answer("a", 23))

    assert [compute(one.plan()) for _ in range(4)] == [[("a", 10)], [("a", 10)], [("a", 3)], [("a", 1)]]


def test_a_new_request_joins_a_running_batch_without_stopping_it() -> None:
    one = scheduler(tokens=10)
    one.add(answer("a", 4))
    compute(one.plan())
    one.add(answer("b", 15))

    assert compute(one.plan()) == [("a", 1), ("b", 9)]
    assert compute(one.plan()) == [("a", 1), ("b", 6)]
    assert compute(one.plan()) == [("a", 1), ("b", 1)]


def test_short_prompts_are_read_together() -> None:
    one = scheduler(tokens=10)
    for name in "abc":
        one.add(answer(name, 3))

    assert compute(one.plan()) == [("a", 3), ("b", 3), ("c", 3)]


def test_no_more_run_than_there_are_slots_and_a_freed_one_is_taken_at_once() -> None:
    one = scheduler(slots=2)
    sequences = [answer(name, 2) for name in "abc"]
    for sequence in sequences:
        one.add(sequence)
    compute(one.plan())
    assert (one.running, one.waiting) == (2, 1)

    one.remove(sequences[0])

    assert compute(one.plan()) == [("b", 1), ("c", 2)]
    assert sequences[2].slot == 0


def test_one_that_waits_can_be_taken_out() -> None:
    one = scheduler(slots=1)
    first, second = answer("a", 2), answer("b", 2)
    one.add(first)
    one.add(second)
    one.plan()

    one.remove(second)
    one.remove(first)

    assert one.is_idle


def test_the_youngest_goes_back_to_the_queue_when_the_cache_is_full() -> None:
    one = scheduler(fits=lambda slots, length: slots * length <= 12)
    first, second = answer("a", 5), answer("b", 5)
    one.add(first)
    one.add(second)
    compute(one.plan())  # both are 6 long now: 12 places
    compute(one.plan())  # 7 long: 14 places are too many

    planned = compute(one.plan())

    assert planned == [("a", 1)]
    assert (second.slot, second.cached, one.preempted) == (None, 0, 1)

    one.remove(first)
    assert compute(one.plan()) == [("b", 7)]


def test_one_alone_runs_whatever_the_cache_says() -> None:
    one = scheduler(fits=lambda slots, length: False)
    one.add(answer("a", 3))

    assert compute(one.plan()) == [("a", 3)]
    assert compute(one.plan()) == [("a", 1)]
