"""A training that goes on reads the tokens that the run before it made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fakes import FakeJob
from modelworks.core.nouns import AnyArtifact
from modelworks.data.batches import Encoded, encode_split
from modelworks.train import tokens
from modelworks.train.run import _decide
from modelworks.train.shared import SharedJob
from modelworks.train.spec import TrainSpec
from modelworks.train.tokens import encode_once
from shelf import conversations, model_at
from tiny import tiny_llama

if TYPE_CHECKING:
    import pytest

ROWS = [(f"say yes {n} times", "yes " * n) for n in range(1, 9)]


def test_rows_are_tokenised_once_for_a_job_and_again_for_another_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "WORTH_KEEPING_SECONDS", 0)
    inputs: dict[str, AnyArtifact] = {
        "tiny": model_at(tiny_llama(tmp_path / "tiny")),
        "rows": conversations(tmp_path / "rows", ROWS, ROWS[:2]),
    }
    job = SharedJob.of(FakeJob(tmp_path / "job", inputs=inputs))
    made: list[Encoded] = []

    def encode(*asked: object) -> Encoded:
        made.append(encode_split(*asked))  # type: ignore[arg-type] # as it is called
        return made[-1]

    def read(max_length: int) -> Encoded:
        spec = TrainSpec(model="tiny", dataset="rows", device="cpu", max_length=max_length)
        return encode_once(_decide(spec, job), "train", encode)

    assert read(40) == read(40) == made[0]
    assert len(made) == 1
    # "say yes n times" takes 17 bytes and the template about as many: 40 tokens cut nothing of the first rows.
    assert read(48) == made[1] != made[0]
