from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from modelworks.merge.arrays import as_tensor, read_row, rounded
from modelworks.merge.method import Method, Piece, methods
from modelworks.weights.reader import DTYPES, Checkpoint

FLOATS = ("BF16", "F16", "F32", "F64")
# Halfway cases, those beside them, the smallest and the largest that stay finite in bfloat16, and zeros.
PATTERNS = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 1, 0x80000001, 0x00008000, 0x7F7F7FFF, 0, 0x80000000]

IN_NUMPY = sorted(name for name, its in methods().items() if its.in_numpy(its.params_type(), [its.params_type()] * 2))


def floats(patterns: list[int]) -> Any:
    return np.array(patterns, np.uint32).view(np.float32)


@given(patterns=st.lists(st.one_of(st.sampled_from(PATTERNS), st.integers(0, 0x477FEFFF)), min_size=1))
@pytest.mark.parametrize("dtype", FLOATS)
def test_it_rounds_as_torch_does(dtype: str, patterns: list[int]) -> None:
    values = floats(patterns)
    expected = torch.from_numpy(values).to(getattr(torch, DTYPES[dtype][0]))

    stored, finite = rounded(values, dtype)

    assert finite == bool(expected.isfinite().all())
    assert not finite or as_tensor(stored, dtype).view(torch.uint8).equal(expected.view(torch.uint8))


@pytest.mark.parametrize("bad", [0x7F7F8000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF])
def test_what_is_or_becomes_infinite_or_is_no_number_is_found(bad: int) -> None:
    assert not rounded(floats([0, bad, 0x3F800000]), "BF16")[1]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_run_of_a_file_is_read_as_float32(tmp_path: Path, dtype: str) -> None:
    stored = torch.randn(100).to(getattr(torch, DTYPES[dtype][0]))
    save_file({"it": stored}, tmp_path / "model.safetensors")
    row = np.empty(30, np.float32)

    with Checkpoint.open(tmp_path) as checkpoint:
        read_row(checkpoint, "it", 7, row)

    assert torch.from_numpy(row).equal(stored[7:37].float())


class Looked:
    """A TensorLook whose pieces are of numpy's arrays, or of torch's tensors."""

    def __init__(self, base: torch.Tensor, models: torch.Tensor, *, in_numpy: bool) -> None:
        self.name, self.size, self.shape = "model.layers.0.mlp.up_proj.weight", base.numel(), tuple(base.shape)
        self._rows, self._in_numpy = (base, models), in_numpy

    def pieces(self, every: int = 1) -> Any:
        for start in range(0, self.size, 1000 * every):
            base, models = (rows[..., start : start + 1000] for rows in self._rows)
            piece = Piece(self.name, self.shape, start, base, models.clone())
            yield piece.map(lambda tensor: tensor.numpy()) if self._in_numpy else piece


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [-1.0, 0.5, -2.0]])
@pytest.mark.parametrize("extra", [{}, {"normalize": True}, {"lambda": -0.7}, {"rescale": True, "rescale_norm": "l1"}])
@pytest.mark.parametrize("name", IN_NUMPY)
def test_numpy_gives_the_bits_of_torch(name: str, extra: dict[str, Any], weights: list[float]) -> None:
    method: Method[Any] = methods()[name]
    known = {"density", *extra} & {field.alias or key for key, field in method.params_type.model_fields.items()}
    body = {key: value for key, value in {"density": 0.3, **extra}.items() if key in known}
    own = [{"weight": weight} if method.takes_weights else {} for weight in weights]
    params = method.params_type.model_validate(body)
    each = [method.params_type.model_validate(body | its) for its in own]
    if not method.in_numpy(params, each):
        pytest.skip("it needs torch")
    dice = torch.Generator().manual_seed(1)
    base = torch.randn(3500, generator=dice).bfloat16().float()
    models = base + torch.randn(3, 3500, generator=dice).bfloat16().float() * (
        torch.rand(3, 3500, generator=dice) < 0.8
    )
    base[::7], models[0, ::5], models[1, ::3] = -0.0, -0.0, 0.0

    found = []
    for in_numpy in (True, False):
        combine = method.begin(Looked(base, models, in_numpy=in_numpy), params, each)
        pieces = Looked(base, models, in_numpy=in_numpy).pieces()
        parts = [piece.base + combine(piece) if method.space == "delta" else combine(piece) for piece in pieces]
        found.append(np.concatenate([np.asarray(part) for part in parts]))

    assert found[0].tobytes() == found[1].tobytes()
