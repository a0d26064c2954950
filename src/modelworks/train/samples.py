"""What the network answers as it is now, to prompts that the user wants to watch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modelworks.data.record import Message
from modelworks.data.render import ChatTemplate, load_tokenizer
from modelworks.train.measuring import undisturbed
from modelworks.train.strategy import Setup


def tell_samples(setup: Setup, network: Any, step: int) -> None:
    """Answer every prompt greedily, and tell the job; a pause that is asked for meanwhile waits for no answer."""
    if setup.spec.sample_prompts:
        with undisturbed(network):
            for prompt, answer in _answers(setup, network):
                setup.job.log(f"sample at step {step}: {prompt!r} -> {answer!r}")


def _answers(setup: Setup, network: Any) -> Iterator[tuple[str, str]]:
    import torch
    from transformers import GenerationConfig

    tokenizer, template = load_tokenizer(setup.model.path), ChatTemplate.load(setup.model.path)

    def go_on(_ids: Any, _scores: Any, **_: Any) -> torch.Tensor:
        setup.job.check()
        return torch.zeros(1, dtype=torch.bool, device=setup.device)

    # Greedy whatever the model's own settings say, which are about serving it.
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=setup.spec.sample_max_new_tokens,
        eos_token_id=network.generation_config.eos_token_id,
        pad_token_id=0,
    )
    for prompt in setup.spec.sample_prompts:
        text = prompt
        if template.source is not None:
            text = template.render([Message("user", prompt)], add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=template.source is None).ids[-setup.max_length :]
        asked = torch.tensor([ids], device=setup.device)
        with torch.no_grad():
            made = network.generate(
                input_ids=asked,
                attention_mask=torch.ones_like(asked),
                generation_config=config,
                stopping_criteria=[go_on],
                synced_gpus=setup.spec.parallel == "fsdp",  # none may end while another needs its weights
            )
        yield prompt, tokenizer.decode(made[0, len(ids) :].tolist())
