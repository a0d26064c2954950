from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import as_model
from modelworks.merge.estimate import Estimate, estimate
from modelworks.merge.plan import make_plan
from modelworks.merge.spec import MergeSpec
from tiny import tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("b", "x", "y")):
        tiny_llama(made / name, seed)
    return made


def estimated(folder: Path, workers: int = 1, **asked: object) -> Estimate:
    spec = MergeSpec.model_validate({"models": ("x", "y")} | asked)
    plan = make_plan(spec, {name: as_model(folder / name, name) for name in ("b", "x", "y")})
    return estimate(plan, workers, "cpu", ("a note",))


def test_what_is_read_and_written_is_counted(folder: Path) -> None:
    plain = estimated(folder, method="average")
    wide = estimated(folder, method="task_arithmetic", base="b", dtype="float32")
    again = estimated(folder, method="ties", base="b")

    # bfloat16 in, and out unless told otherwise.
    assert plain.bytes_read == 2 * 2 * plain.parameters
    assert plain.bytes_written == 2 * plain.parameters
    assert wide.bytes_read == 3 * 2 * plain.parameters
    assert (wide.bytes_written, wide.dtype) == (4 * plain.parameters, "float32")
    # TIES looks for a threshold first.
    assert again.bytes_read > wide.bytes_read
    assert plain.notes == ("a note",)


def test_a_base_that_a_method_may_do_without_is_counted_where_it_is_given(folder: Path) -> None:
    with_base, without = (estimated(folder, method="nuslerp", base=base) for base in ("b", None))

    assert 2 * with_base.bytes_read == 3 * without.bytes_read
    assert with_base.seconds >= without.seconds


def test_what_is_left_out_is_copied(folder: Path) -> None:
    found = estimated(folder, method="average", exclude_param_names_regex=("model.embed_tokens",))

    assert (found.tensors_merged, found.tensors_copied) == (19, 1)


def test_workers_take_memory(folder: Path) -> None:
    one, four = (estimated(folder, workers, method="average") for workers in (1, 4))

    assert (one.workers, four.workers) == (1, 4)
    assert four.memory_bytes > one.memory_bytes
