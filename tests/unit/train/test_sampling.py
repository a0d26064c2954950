from __future__ import annotations

from typing import Any

import pytest
import torch

from modelworks.core.errors import Cancelled
from modelworks.train.sampling import Sampling, _draw, sample_answers
from modelworks.weights.loading import load_network
from tiny import tiny_llama

PROMPTS = [[1, 5, 9, 14], [1, 7], [1, 5, 9, 14], [1, 30, 31, 32, 33, 34]]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_network(tiny_llama(tmp_path_factory.mktemp("models") / "tiny"), torch.float32, "cpu")


def go_on() -> None:
    pass


def test_answers_are_what_the_network_says_whatever_stands_beside_them(network: Any) -> None:
    nearly_certain = Sampling(max_new_tokens=12, temperature=1e-4, top_p=1.0)
    alone = [
        network.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        for prompt in PROMPTS
    ]
    wanted = [each[0, len(prompt) :].tolist() for each, prompt in zip(alone, PROMPTS, strict=True)]

    assert sample_answers(network, PROMPTS, nearly_certain, [], go_on) == wanted
    # The third token of the second answer ends it, and perhaps others, which leave the batch.
    end = wanted[1][2]
    cut = [each[: each.index(end) + 1] if end in each else each for each in wanted]
    assert sample_answers(network, PROMPTS, nearly_certain, [end], go_on) == cut
    assert len(cut[1]) <= 3


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    torch.manual_seed(0)
    shares = torch.tensor([0.5, 0.0, 0.3, 0.2])
    many = shares.log().expand(20_000, 4)

    assert torch.allclose(_frequencies(_draw(many, Sampling(1, 1.0, 1.0))), shares, atol=0.015)
    # At half the temperature shares are squared: 25 : 9 : 4 of 38.
    squared = torch.tensor([25, 0, 9, 4]) / 38
    assert torch.allclose(_frequencies(_draw(many, Sampling(1, 0.5, 1.0))), squared, atol=0.015)
    # The likeliest that come to 0.6 are two of them.
    kept = torch.tensor([0.625, 0, 0.375, 0])
    assert torch.allclose(_frequencies(_draw(many, Sampling(1, 1.0, 0.6))), kept, atol=0.015)


def test_a_cancel_is_heard_between_tokens(network: Any) -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        sample_answers(network, PROMPTS, Sampling(100, 1.0, 1.0), [], check)
    assert asked == 3


def _frequencies(tokens: torch.Tensor) -> torch.Tensor:
    return torch.bincount(tokens, minlength=4) / len(tokens)
