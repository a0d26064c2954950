"""A damaged safetensors file is refused with a clear error, whatever the damage."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelworks.core.errors import Invalid
from modelworks.weights.reader import read_header

HEADER: dict[str, dict[str, object]] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}
_TEXT = json.dumps(HEADER).encode()
SOUND = struct.pack("<Q", len(_TEXT)) + _TEXT + bytes(32)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("header") / "model.safetensors"


def open_or_refuse(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with suppress(Invalid):  # and nothing else
        assert all(8 <= info.start <= info.end <= len(content) for info in read_header(file).values())


def test_the_sound_file_opens(file: Path) -> None:
    file.write_bytes(SOUND)

    assert {name: (info.shape, info.size_bytes) for name, info in read_header(file).items()} == {
        "a": ((2, 3), 24),
        "b": ((4,), 8),
    }


@given(st.integers(0, len(SOUND)))
def test_a_file_cut_short_is_refused(file: Path, length: int) -> None:
    file.write_bytes(SOUND[:length])

    if length < len(SOUND):
        with pytest.raises(Invalid, match=r"fetch it again|not safetensors"):
            read_header(file)


@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 33), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_are_refused_or_harmless(file: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(SOUND)
    for position, value in changes:
        content[position] = value

    open_or_refuse(file, bytes(content))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_harmless(file: Path, content: bytes) -> None:
    open_or_refuse(file, content)


@given(st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), json_values), json_values)
def test_any_json_is_refused_or_harmless(file: Path, changes: dict[str, object], other: object) -> None:
    header = {**HEADER, "a": {**HEADER["a"], **changes}, "c": other}
    text = json.dumps(header).encode()

    open_or_refuse(file, struct.pack("<Q", len(text)) + text + bytes(32))


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [20, 28]}, "overlaps"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [32, 40]}, "ends at byte"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [32, 40]}, "needs 12 bytes"),
        ({"dtype": "Q4", "shape": [2], "data_offsets": [32, 40]}, "dtype 'Q4'"),
    ],
)
def test_the_error_says_what_does_not_fit(file: Path, entry: dict[str, object], word: str) -> None:
    text = json.dumps({**HEADER, "c": entry}).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))

    with pytest.raises(Invalid, match=word):
        read_header(file)
