from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.core import kernels
from modelworks.core.errors import Unavailable
from modelworks.serve.native.team import find_team

SIZES = st.integers(0, 70)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Nothing of the library is remembered before and after."""
    cached = (kernels._kernel, kernels._library, kernels._level)
    for each in cached:
        each.cache_clear()
    yield
    for each in cached:
        each.cache_clear()


def bits(size: int, seed: int) -> Any:
    """As many bfloat16 as there are in a model: none of them NaN or infinite."""
    return (np.random.default_rng(seed).normal(0, 0.1, size).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@settings(deadline=None)
@given(size=SIZES, models=st.integers(1, 4), seed=st.integers(0, 1000), stored=st.booleans())
def test_every_generation_of_processors_gets_the_same_bits(size: int, models: int, seed: int, stored: bool) -> None:
    newest = kernels._level()
    base, rows = bits(size, seed), np.stack([bits(size, seed + place) for place in range(1, models + 1)])
    wide = (rows.astype(np.uint32) << 16).view(np.float32)
    values, under = (rows, base) if stored else (wide, 0)
    weights, numbers = np.linspace(0.5, 2, models, dtype=np.float32), np.array([1e9, 0.7], np.float32)
    made: list[list[bytes]] = []

    for level in {1, newest}:
        outs = [np.zeros(size, np.float32) for _ in range(5)]
        short, found = np.zeros(size, np.uint16), np.zeros(1, np.int64)
        patterns, places, total = np.zeros(size, np.int32), np.zeros(size, np.int64), np.zeros(1)
        calls: list[tuple[Any, ...]] = [
            ("shrink", values[0], under, 0x3D000000, outs[0], size),
            ("mix", values, under, models, size, weights, outs[1]),
            ("drop", values[0], under, size, 5, 0x1234567, -0x7654321, numbers, outs[2]),
            ("elect", wide, models, size, weights, 1, outs[3]),
            ("widen", base, outs[4], size),
            ("add", outs[4], base, size),
            ("narrow", outs[4], short, size),
            ("add_up", values[0], under, size, total),
            ("between", values[0], under, size, 0x3C000000, 0x3D800000, 7, patterns, places, found, size),
        ]
        for name, *arguments in calls:
            kernels._kernel.cache_clear()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(kernels, "_level", lambda level=level: level)
                kernels.call(name, *arguments)
        results: list[Any] = [*outs, short, patterns, places, found, total]
        made.append([each.tobytes() for each in results])
    kernels._kernel.cache_clear()

    assert all(each == made[0] for each in made)


def test_what_is_between_is_found_wherever_it_stands() -> None:
    row = np.array([0.5, -0.25, 0.0, 0.125, -0.5, 8.0, *[0.0] * 30, -0.375], np.float32)
    low, high = (int(np.float32(bound).view(np.int32)) for bound in (0.25, 0.5))
    patterns, places, found = np.zeros(3, np.int32), np.zeros(3, np.int64), np.array([1])

    below = kernels.call("between", row, 0, len(row), low, high, 100, patterns, places, found, 3)

    assert below == 32
    assert found[0] == 5, "what does not fit is counted"
    assert places.tolist() == [0, 100, 101]
    assert patterns.view(np.float32).tolist() == [0, 0.5, 0.25]


def test_what_has_gaps_in_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        kernels.call("widen", np.zeros(8, np.uint16)[::2], np.zeros(4, np.float32), 4)


def test_without_the_compiled_library_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forgotten: None
) -> None:
    monkeypatch.setattr(kernels, "_LIBRARY", tmp_path / "library.so")

    with pytest.raises(Unavailable, match="install Modelworks again"):
        kernels.call("widen", np.zeros(4, np.uint16), np.zeros(4, np.float32), 4)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="nowhere to read what the processor can do")
def test_the_newest_generation_is_found() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    third = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
    fourth = third | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

    assert kernels._level() == (4 if fourth <= flags else 3 if third <= flags else 1)


@pytest.mark.skipif(not kernels.has("multiply"), reason="no kernel for float16 on this processor")
@settings(deadline=None)
@given(
    rows=st.integers(1, 40), outer=st.integers(1, 130), inner=st.integers(1, 40), seed=st.integers(0, 9),
    start=st.sampled_from(["nothing", "bias", "rows"]), threads=st.sampled_from([1, 2, 3]),
)  # fmt: skip
def test_a_product_is_that_of_float16_weights_and_the_same_for_a_row_alone(
    rows: int, outer: int, inner: int, seed: int, start: str, threads: int
) -> None:
    dice = np.random.default_rng(seed)
    weight = dice.normal(size=(outer, inner)).astype(np.float16).astype(np.float32)
    x = dice.normal(size=(rows, inner)).astype(np.float32)
    added = {"nothing": None, "bias": dice.normal(size=outer), "rows": dice.normal(size=(rows, outer))}[start]
    added = None if added is None else added.astype(np.float32)
    panels = np.zeros((-(-outer // 16), inner, 16), np.float16)
    made: dict[int, list[Any]] = {}

    for level in kernels._levels("multiply"):
        kernels._kernel.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "_level", lambda level=level: level)
            find_team.__wrapped__()
            torch.set_num_threads(threads)
            assert kernels.call("pack", weight, panels, outer, inner) == 0
            whole, alone = np.empty((rows, outer), np.float32), np.empty((rows, outer), np.float32)
            step = outer if start == "rows" else 0
            kernels.call("multiply", x, panels, 0 if added is None else added, whole, rows, outer, inner, step)
            for row in range(rows):
                own = 0 if added is None else np.ascontiguousarray(added[row] if start == "rows" else added)
                kernels.call("multiply", x[row].copy(), panels, own, alone[row], 1, outer, inner, step)
            made[level] = [whole, alone]
    kernels._kernel.cache_clear()
    torch.set_num_threads(1)

    exact = x.astype(np.float64) @ weight.T.astype(np.float64) + (0 if added is None else added)
    first = made[max(made)][0]
    np.testing.assert_allclose(first, exact, atol=1e-4)
    assert all(np.array_equal(first, each) for both in made.values() for each in both)


@pytest.mark.skipif(not kernels.has("pack"), reason="no kernel for float16 on this processor")
@pytest.mark.parametrize(
    ("value", "is_held"),
    [(65504.0, True), (65536.0, False), (2**-24, True), (2**-26, True), (2**-24 * 1.75, True), (1 + 2**-11, False),
     (np.nan, False), (np.inf, False)],
)  # fmt: skip
def test_a_weight_that_float16_does_not_hold_is_noticed(value: float, is_held: bool) -> None:
    find_team()
    weight = np.zeros((33, 21), np.float32)
    weight[32, 20] = value

    wrong = kernels.call("pack", weight, np.zeros((3, 21, 16), np.float16), 33, 21)

    assert bool(wrong) is not is_held
