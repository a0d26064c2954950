"""Choosing tokens: every row by its own settings and its own draws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from modelworks.core.generation import GenerateRequest
from modelworks.serve.native.detokenize import Detokenizer
from modelworks.serve.native.sampler import _steer, _thresholds, sample
from modelworks.serve.native.scoring import score
from modelworks.serve.native.sequence import Sequence

VOCAB = 1000


def answer(**settings: Any) -> Sequence:
    request = GenerateRequest(id="x", model="m", prompt="", **settings)
    return Sequence(request, [1], 1, 100, Detokenizer(lambda ids: ""))


def logits_of(probabilities: list[float]) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def test_temperature_zero_takes_the_best() -> None:
    assert sample(logits_of([0.2, 0.5, 0.3]), [answer(temperature=0)]) == [1]


def test_a_tiny_temperature_is_as_good_as_zero() -> None:
    assert sample(100 * logits_of([0.2, 0.5, 0.3]), [answer(temperature=1e-9, seed=1)]) == [1]


def test_draws_follow_the_probabilities() -> None:
    one = answer(seed=1)

    drawn = [sample(logits_of([0.1, 0.6, 0.3]), [one])[0] for _ in range(2000)]

    # standard error of a share near 0.5 in 2000 draws: 0.011
    shares = [drawn.count(token) / 2000 for token in range(3)]
    assert all(abs(share - p) < 0.05 for share, p in zip(shares, [0.1, 0.6, 0.3], strict=True))


def test_top_k_and_top_p_keep_the_best_only() -> None:
    probabilities = [0.05, 0.4, 0.25, 0.2, 0.1]
    by_k, by_p, by_both = answer(top_k=2, seed=1), answer(top_p=0.6, seed=2), answer(top_k=2, top_p=0.6, seed=3)

    drawn = [sample(logits_of(probabilities).repeat(3, 1), [by_k, by_p, by_both]) for _ in range(300)]

    # 0.4 + 0.25 reach 0.6; of the best two alone, 0.4 / 0.65 = 0.615 reaches it
    assert [{row[i] for row in drawn} for i in range(3)] == [{1, 2}, {1, 2}, {1}]


def test_top_p_over_a_flat_distribution_keeps_that_share_of_it() -> None:
    torch.manual_seed(0)
    logits = 0.001 * torch.randn(1, VOCAB)
    one = answer(top_p=0.5, seed=1)

    drawn = {sample(logits, [one])[0] for _ in range(3000)}

    # nearly equal probabilities: half of them, all drawn in 3000 attempts but a few (500 e^-6 = 1.2)
    best = set(logits[0].topk(VOCAB // 2 + 2).indices.tolist())
    assert drawn <= best
    assert len(drawn) > 480


def test_many_candidates_are_cut_as_a_whole_sort_would_in_any_company() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 5000)
    ks, ps = [300, 300, 5000, 5000, 7], [1.0, 0.5, 0.9, 1.0, 1.0]

    kept = (logits >= _thresholds(logits, ks, ps)).sum(dim=1).tolist()

    for row, (k, p) in enumerate(zip(ks, ps, strict=True)):
        best = logits[row].double().sort(descending=True).values[:k].softmax(dim=0)
        assert abs(kept[row] - int((best.cumsum(dim=0) - best < p).sum())) <= 1  # rounding
        assert kept[row] == (logits[row] >= _thresholds(logits[row : row + 1], [k], [p])).sum().item()


def test_the_same_seed_draws_the_same_alone_and_in_company() -> None:
    torch.manual_seed(0)
    steps = [torch.randn(3, VOCAB) for _ in range(20)]
    settings: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 7}

    one = answer(**settings)
    alone = [sample(step[1:2], [one])[0] for step in steps]
    company = [answer(temperature=0), answer(**settings), answer(top_k=5, seed=8)]
    together = [sample(step, company)[1] for step in steps]

    assert alone == together


def test_a_row_that_is_not_a_number_gives_none_and_leaves_its_neighbours_alone() -> None:
    logits = torch.tensor([[1.0, 2.0], [float("nan"), 1.0], [3.0, 1.0]])

    assert sample(logits, [answer(temperature=0), answer(seed=1), answer(temperature=0)]) == [1, None, 0]


def test_penalties_are_as_worked_out_by_hand() -> None:
    one = answer(temperature=0, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    for token in (2, 2, 3):
        one.accept(token, frozenset())
    logits = torch.tensor([[1.0, 3.0, -1.0, 2.0]])

    # 1 is the prompt's: 3 / 2. 2 came twice: -1 * 2 - 0.5 - 2 * 0.25. 3 came once: 2 / 2 - 0.5 - 0.25.
    assert _steer(logits, [one]).tolist() == [[1.0, 1.5, -3.0, 0.25]]
    assert logits.tolist() == [[1.0, 3.0, -1.0, 2.0]]


def test_presence_and_frequency_leave_the_prompt_alone() -> None:
    one = answer(presence_penalty=1.0, frequency_penalty=1.0)

    assert _steer(torch.tensor([[1.0, 3.0]]), [one]).tolist() == [[1.0, 3.0]]


def test_biases_are_added_and_can_forbid_or_force() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    less, more = answer(temperature=0, logit_bias=((1, -1.5),)), answer(temperature=0, logit_bias=((0, 100.0),))

    assert _steer(logits.repeat(2, 1), [less, more]).tolist() == [[1.0, 1.5, 2.0], [101.0, 3.0, 2.0]]
    assert sample(logits.repeat(2, 1), [less, more]) == [2, 0]


def test_min_p_keeps_a_share_of_the_best_after_the_temperature() -> None:
    probabilities = [0.05, 0.4, 0.25, 0.2, 0.1]
    plain, cold = answer(min_p=0.45, seed=1), answer(min_p=0.45, temperature=0.5, seed=2)

    drawn = [sample(logits_of(probabilities).repeat(2, 1), [plain, cold]) for _ in range(300)]

    # 0.18 of 0.4; at temperature 1/2 the probabilities are squared, and 0.25 / 0.4 = 0.625 becomes 0.39
    assert [{row[i] for row in drawn} for i in range(2)] == [{1, 2, 3}, {1}]


def test_every_setting_draws_the_same_alone_and_in_company() -> None:
    torch.manual_seed(0)
    kinds: list[dict[str, Any]] = [
        {"seed": 1},
        {"seed": 2, "top_p": 0.8, "presence_penalty": 1.0},
        {"seed": 3, "min_p": 0.2, "temperature": 2.0},
        {"seed": 4, "repetition_penalty": 1.5, "frequency_penalty": 0.5},
        {"seed": 5, "logit_bias": ((3, 5.0), (7, -100.0)), "top_k": 4},
        {"temperature": 0, "repetition_penalty": 3.0},
    ]
    steps = [torch.randn(len(kinds), 50) for _ in range(30)]

    def run(rows: list[int]) -> list[list[int | None]]:
        company = [answer(**kinds[row]) for row in rows]
        said = []
        for step in steps:
            said.append(sample(step[rows], company))
            for one, token in zip(company, said[-1], strict=True):
                one.accept(token or 0, frozenset())
        return said

    together = run(list(range(len(kinds))))
    for row in range(len(kinds)):
        assert [tokens[row] for tokens in together] == [tokens[0] for tokens in run([row])]


def test_a_row_that_is_not_a_number_fails_alone_among_those_that_are_steered() -> None:
    logits = torch.tensor([[1.0, 2.0], [float("nan"), 1.0]])

    assert sample(logits, [answer(temperature=0, logit_bias=((0, 9.0),)), answer(logit_bias=((0, -100.0),))]) == [
        0,
        None,
    ]


def test_scores_are_of_the_model_itself() -> None:
    ((own, top),) = score(logits_of([0.2, 0.5, 0.3]), [2], 2)

    assert own == pytest.approx(math.log(0.3))
    assert [token for token, _ in top] == [1, 2]
    assert [value for _, value in top] == pytest.approx([math.log(0.5), math.log(0.3)])
