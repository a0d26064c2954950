"""Where a replica goes, on machines with and without GPUs."""

from __future__ import annotations

import pytest

from modelworks.core.errors import Invalid, Unsupported
from modelworks.serve.placement import choose_device


@pytest.mark.parametrize(
    ("wish", "gpus", "taken", "device"),
    [
        ("auto", 0, [], "cpu"),
        ("auto", 2, ["cuda:0", "cpu"], "cuda:1"),
        ("cuda", 2, ["cuda:0", "cuda:1", "cuda:1"], "cuda:0"),
        ("cuda:1", 2, ["cuda:1"], "cuda:1"),
        ("cpu", 2, [], "cpu"),
    ],
)
def test_a_wish_becomes_a_device(wish: str, gpus: int, taken: list[str], device: str) -> None:
    assert choose_device(wish, gpus, taken) == device


@pytest.mark.parametrize(
    ("wish", "gpus", "said"),
    [
        ("cuda:0", 0, "this machine has no GPU; use cpu"),
        ("cuda", 0, "no GPU"),
        ("cuda:1", 1, "one GPU, cuda:0; use one of those or cpu"),
        ("cuda:7", 2, "GPUs cuda:0 to cuda:1"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_what_is(wish: str, gpus: int, said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        choose_device(wish, gpus, [])


@pytest.mark.parametrize("wish", ["", "gpu", "cuda:", "cuda:-1", "cuda:1,2", "meta", "cuda:0x"])
def test_what_is_no_device_is_refused(wish: str) -> None:
    with pytest.raises(Invalid, match="is not a device"):
        choose_device(wish, 2, [])
