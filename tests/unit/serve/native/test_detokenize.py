"""Text as it comes: whole characters, and no piece of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelworks.serve.native.detokenize import Detokenizer


def decode_bytes(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", "replace")


def test_a_character_of_several_tokens_comes_when_it_is_whole() -> None:
    detokenizer = Detokenizer(decode_bytes)

    told = [detokenizer.add(byte) for byte in "aé€😀".encode()]

    assert told == ["a", "", "é", "", "", "€", "", "", "", "😀"]


def test_a_stop_string_across_tokens_is_never_told() -> None:
    detokenizer = Detokenizer(decode_bytes, ["END"])

    told = "".join(detokenizer.add(byte) for byte in b"the E EN END after")

    assert told == "the E EN "
    assert detokenizer.stopped


def test_what_only_looked_like_a_stop_string_is_told_at_the_end() -> None:
    detokenizer = Detokenizer(decode_bytes, ["END"])

    told = "".join(detokenizer.add(byte) for byte in b"weekEN")

    assert told == "week"
    assert detokenizer.close() == "EN"
    assert not detokenizer.stopped


def test_bytes_that_never_become_a_character_do_not_hold_the_text_for_ever() -> None:
    detokenizer = Detokenizer(decode_bytes)

    told = "".join(detokenizer.add(0xFF) for _ in range(20))

    assert told


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_the_pieces_joined_are_the_text_up_to_the_first_stop_string(text: str, stops: list[str]) -> None:
    detokenizer = Detokenizer(decode_bytes, stops)

    told = ""
    for byte in text.encode():
        told += detokenizer.add(byte)
        if detokenizer.stopped:
            break
    told += detokenizer.close()

    # The stop string that is complete first wins; of several that end together, the one that begins first.
    complete = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if complete:
        seen = text[: complete[0]]
        assert told == seen[: min(seen.find(stop) for stop in stops if seen.endswith(stop))]
    else:
        assert told == text


@pytest.mark.parametrize("stops", [(), ("",)])
def test_no_stop_string_holds_nothing_back(stops: tuple[str, ...]) -> None:
    assert Detokenizer(decode_bytes, stops).add(ord("x")) == "x"
