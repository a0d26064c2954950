# ruff: noqa: N999 - the Model Server's document names this file so
"""Two models of one's own: a smoke test, and any checkpoint that transformers can load.

An entry runs in a process of its own, with this folder's parent as its working directory; what it prints is in the
log `engines/engine-*.log` of the workspace. If it raises, its callers get the error; if it dies, it is started again.
"""

from __future__ import annotations

from modelworks.serve.entries import ModelServerEntry

Batch = list[list[dict[str, str]]]


class EchoEntry(ModelServerEntry):
    """Says the last message again."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    def activate(self, device: str) -> None:
        print(f"echo on {device}")

    def deactivate(self) -> None:
        print("echo ends")

    def inference(self, batch: Batch, temperature: float) -> list[str]:  # noqa: ARG002 - an echo has none
        return [self.prefix + conversation[-1]["content"] for conversation in batch]


class TransformersEntry(ModelServerEntry):
    """A causal language model with a chat template, loaded by transformers."""

    def __init__(self, model_path: str, max_new_tokens: int = 256) -> None:
        self.model_path, self.max_new_tokens = model_path, max_new_tokens

    def activate(self, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(self.model_path, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(self.model_path).to(device).eval()

    def deactivate(self) -> None:
        del self.model

    def inference(self, batch: Batch, temperature: float) -> list[str]:
        inputs = self.tokenizer.apply_chat_template(
            [[_as_transformers_say_it(message) for message in conversation] for conversation in batch],
            add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt",
        ).to(self.model.device)  # fmt: skip
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, **sampling)
        return self.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _as_transformers_say_it(message: dict[str, str]) -> dict[str, str]:
    # The Model Server's callers call the model "agent"; chat templates know it as "assistant".
    return {**message, "role": "assistant"} if message["role"] == "agent" else message
