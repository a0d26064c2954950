from __future__ import annotations

import copy

import torch

from modelworks.train.optimizer import make_optimizer


def test_steps_too_small_for_bfloat16_add_up() -> None:
    layer = torch.nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(layer.weight)
    optimizer = make_optimizer(layer, learning_rate=1e-4, weight_decay=0.0)

    for _ in range(100):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()

    # 100 steps of 1e-4 each: 0.99; bfloat16 is spaced 1/256 just below 1, so one alone would vanish.
    assert torch.allclose(layer.weight.float(), torch.tensor(0.99), atol=1 / 256)
    assert bool((layer.weight < 1).all())


def test_its_state_brings_the_float32_weights_back() -> None:
    layers = [torch.nn.Linear(4, 4, dtype=torch.bfloat16) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [make_optimizer(layer, 1e-3, 0.1) for layer in layers]
    for steps, layer, optimizer in ((5, layers[0], optimizers[0]), (0, layers[1], optimizers[1])):
        for _ in range(steps):
            for weight in layer.parameters():
                weight.grad = weight.detach().clone()
            optimizer.step()

    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    layers[1].load_state_dict(layers[0].state_dict())
    for layer, optimizer in zip(layers, optimizers, strict=True):
        for weight in layer.parameters():
            weight.grad = weight.detach().clone()
        optimizer.step()

    assert torch.equal(layers[0].weight, layers[1].weight)
    saved = [optimizer.state_dict()["masters"] for optimizer in optimizers]
    assert all(torch.equal(one, other) for one, other in zip(*saved, strict=True))
