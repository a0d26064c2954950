"""Who computes what in the next step."""

from __future__ import annotations

from collections.abc import Callable

from modelworks.core.generation import GenerateRequest
from modelworks.serve.native.detokenize import Detokenizer
from modelworks.serve.native.scheduler import Piece, Scheduler
from modelworks.serve.native.sequence import Sequence


def answer(name: str, length: int, like: str | None = None, shared: int | None = None) -> Sequence:
    """A prompt that has all of its tokens, or its first `shared` ones, from that of the name `like`."""
    request = GenerateRequest(id=name, model="m", prompt="")
    own, other = (int.from_bytes(each.encode()) for each in (name, like or name))
    tokens = [other if shared is None or at < shared else own for at in range(length)]
    return Sequence(request, tokens, length, 1000, Detokenizer(lambda ids: ""))


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


class Slots:
    """A cache of names in place of tensors: who wrote what where."""

    def __init__(self) -> None:
        self.slots, self.length = 1, 0
        self.copies: list[tuple[int, int, int]] = []
        self.wiped: list[int] = []

    def reserve(self, slots: int, length: int) -> None:
        self.slots, self.length = max(slots, self.slots), max(length, self.length)

    def resize(self, slots: int, length: int) -> None:
        self.slots, self.length = slots, length

    def copy(self, source: int, target: int, count: int) -> None:
        self.copies.append((source, target, count))

    def wipe(self, slot: int) -> None:
        self.wiped.append(slot)


def finish(one: Scheduler, sequence: Sequence, cache: Slots) -> list[tuple[str, int]]:
    """Compute until the first token, then end the answer."""
    one.add(sequence)
    shown = []
    while sequence.generated == 0:
        pieces = one.plan()
        one.make_ready(cache)
        shown += compute(pieces)
    one.remove(sequence)
    return shown


def test_what_ended_answers_read_is_copied_and_not_read_again() -> None:
    one, cache = scheduler(tokens=1000), Slots()
    first, second = answer("a", 100), answer("b", 120, like="a", shared=80)

    assert finish(one, first, cache) == [("a", 100)]
    assert finish(one, second, cache) == [("b", 40)]
    assert (cache.copies, second.reused, one.reused_tokens) == ([(0, 1, 80)], 80, 80)


def test_a_conversation_goes_on_in_its_own_slot() -> None:
    one, cache = scheduler(tokens=1000), Slots()
    finish(one, answer("a", 100), cache)
    again = answer("b", 130, like="a", shared=100)

    assert finish(one, again, cache) == [("b", 30)]
    assert (cache.copies, cache.slots) == ([], 1)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    one, cache = scheduler(tokens=1000), Slots()
    finish(one, answer("a", 100), cache)

    assert finish(one, answer("b", 100, like="a"), cache) == [("b", 1)]


def test_adapters_never_share_and_what_is_forgotten_is_read_again() -> None:
    one, cache = scheduler(tokens=1000), Slots()
    for name in ("base", "x"):
        sequence = answer(name, 50, like="base")
        sequence.adapter = None if name == "base" else name
        assert finish(one, sequence, cache) == [(name, 50)]

    one.forget("x")
    changed = answer("x", 50, like="base")
    changed.adapter = "x"

    assert finish(one, changed, cache) == [("x", 50)]
    assert finish(one, answer("base", 50), cache) == [("base", 1)]
    one.forget()
    assert finish(one, answer("base", 50), cache) == [("base", 50)]


def test_prompts_that_begin_alike_wait_until_one_has_read_the_beginning() -> None:
    one, cache = scheduler(tokens=100), Slots()
    for name in "abc":
        one.add(answer(name, 210, like="alike", shared=200))
    steps = []
    for _ in range(3):
        pieces = one.plan()
        one.make_ready(cache)
        steps.append(compute(pieces))

    assert steps == [[("a", 100)], [("a", 100)], [("a", 10), ("b", 10), ("c", 10)]]
    assert cache.copies == [(0, 1, 200), (0, 2, 200)]


def test_a_long_prompt_does_not_hold_up_short_ones_and_gets_on_beside_them() -> None:
    one = scheduler(slots=20, tokens=40)
    one.add(answer("long", 400))
    compute(one.plan())
    for name in "abcdefgh":
        one.add(answer(name, 10))

    first = one.plan()
    assert {piece.sequence.id: piece.count for piece in first} == {"long": 20, "a": 10, "b": 10}
    compute(first)
    second = {piece.sequence.id: piece.count for piece in one.plan()}
    assert second["long"] == 19
    assert second["c"] == 10


def test_the_oldest_prompt_is_read_to_its_end_whoever_comes_after_it() -> None:
    one = scheduler(slots=50, tokens=40)
    old = answer("old", 400)
    one.add(old)
    for step in range(60):
        one.add(answer(f"{step}", 39))
        if old.generated:
            break
        compute(one.plan())

    assert old.generated == 1


def test_prefixes_give_way_before_an_answer_does() -> None:
    one, cache = scheduler(tokens=1000, fits=lambda slots, length: slots * length <= 250), Slots()
    finish(one, answer("a", 100), cache)

    assert finish(one, answer("b", 120), cache) == [("b", 120)]
    assert finish(one, answer("c", 200), cache) == [("c", 200)]
    assert one.preempted == 0


def test_a_slot_with_what_failed_in_it_is_wiped_and_never_shared() -> None:
    one, cache = scheduler(tokens=1000), Slots()
    broken = answer("a", 50)
    one.add(broken)
    compute(one.plan())
    one.remove(broken, sound=False)

    assert finish(one, answer("b", 50, like="a"), cache) == [("b", 50)]
    assert cache.wiped == [0]


def test_at_rest_a_few_prefixes_stay_in_the_lowest_slots() -> None:
    one, cache = scheduler(slots=20, tokens=1000), Slots()
    sequences = [answer(f"{i}", 50) for i in range(20)]
    for sequence in sequences:
        one.add(sequence)
    pieces = one.plan()
    one.make_ready(cache)
    compute(pieces)
    for sequence in reversed(sequences):
        one.remove(sequence)

    one.rest(cache)

    assert (cache.slots, cache.length) == (8, 50)
    assert finish(one, answer("again", 60, like="3", shared=50), cache) == [("again", 10)]
    assert finish(one, answer("gone", 60, like="19", shared=50), cache) == [("gone", 60)]
