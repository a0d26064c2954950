"""What a training will read and take: tokens, steps, memory, disk and seconds; torch is not loaded here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from modelworks.core.nouns import AnyArtifact, Dataset
from modelworks.data.batches import order_by_length
from modelworks.data.record import Preference, Prompted, Record, read_records
from modelworks.data.render import IGNORED, ChatTemplate, encode_example, load_tokenizer
from modelworks.train import rate
from modelworks.train.footprint import Network, device_of, disk_bytes, dtype_of, weights_bytes, width_of
from modelworks.train.microbatches import FIRST_TOKENS, memory_bytes
from modelworks.train.plan import adapter_to_go_on_from, chosen_inputs, lora_of, provider_on, settle
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Settled
from modelworks.weights.scoring import ROWS_AT_ONCE

# Of a larger dataset so many rows are tokenised, and the rest is taken to be like them.
ROWS_LOOKED_AT = 5000
# Values kept for the gradient, a token and layer: widths of the network, and of its MLP; by who computes the layers.
_KEPT = {"ours": (12, 2), "library": (16, 4), "qlora": (16, 4)}
# Of a position that is scored: logits, their softmax and its gradient.
_LOGITS = 3
# Share of the machine's matmul rate that a training reaches, and what it takes besides.
_REACHED = {"ours": 0.55, "library": 0.4, "qlora": 0.3}
_START_SECONDS = 12.0
_COMPARED = ("dpo", "kto")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a training does and takes.

    The constants are fitted, in float32 on a 2-core Zen 3, to two or three steps (sft, LoRA and full; qlora; dpo) of
    SmolLM2-135M and of a network of its widths with 6 layers, where memory was within 12 % and seconds within 30 %, on
    one core; where more programs ran than cores a training took twice as long. Elsewhere, and
    above all on a GPU, they are a guess.
    """

    strategy: str
    tuning: str
    device: str
    dtype: str
    parameters: int
    trainable_parameters: int
    rows: int
    tokens: int
    longest_row: int
    truncated_rows: int
    masked_rows: int
    steps: int
    num_train_epochs: float
    per_device_train_batch_size: int
    max_length: int
    learning_rate: float
    memory_bytes: int
    # What it consists of.
    memory: Mapping[str, int]
    memory_there_is: int
    disk_bytes: int
    # None where it cannot be told: on a GPU, and for what writes answers of its own.
    seconds: float | None
    # The rate that was measured, in 10^9 operations a second.
    matmul_gflops: float | None
    # What is doubtful, or has no effect.
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """Rows as tokens: how many texts each has, what is read of them, the longest, and what is scored."""

    texts: int
    lengths: Sequence[int]
    widths: Sequence[int]
    scored: Sequence[int]
    truncated: int
    masked: int
    looked_at: int


@dataclass(frozen=True)
class Batch:
    """What a batch computes: tokens with their padding, the sum of their squared lengths, and positions scored."""

    rows: int
    width: int
    tokens: int
    squares: int
    scored: int


def estimate(
    spec: TrainSpec,
    inputs: Mapping[str, AnyArtifact],
    *,
    read: Callable[[Path, Path, int, str], Rows] | None = None,
    measure: Callable[[str], float | None] = rate.measured,
) -> Estimate:
    """Tokenise the rows and work out the rest.

    Args:
        read: as `read_rows`.
        measure: the machine's rate in a dtype, or None: then the seconds are not told.
    """
    start = adapter_to_go_on_from(spec, inputs)
    spec = spec if start is None else spec.model_copy(update=dict(lora_of(start)))
    model, dataset = chosen_inputs(spec, inputs)
    settled, device, network = settle(spec, model), device_of(spec), Network.of(model)
    dtype = dtype_of(spec, device)
    rows = (read or read_rows)(model.path, dataset.path, settled.max_length, spec.strategy)
    share = dataset.train_rows / max(rows.looked_at, 1)
    size = settled.per_device_train_batch_size * spec.num_processes
    steps_an_epoch = math.ceil(max(len(rows.lengths) * share, 1) / size / spec.gradient_accumulation_steps)
    steps = spec.max_steps or math.ceil(steps_an_epoch * settled.num_train_epochs)
    batches = _batches(rows, size, spec.seed)
    drawn = batches[: steps * spec.gradient_accumulation_steps]
    memory = weights_bytes(spec, network, width_of(dtype)) | max(
        (_activations(spec, rows, network, batch, device, width_of(dtype)) for batch in drawn),
        key=lambda parts: sum(parts.values()), default={},
    )  # fmt: skip
    needed = _most(spec, memory, rows, batches, network, dataset.validation_rows)
    answers_itself = spec.strategy in ("grpo", "rlhf")
    gflops = measure(dtype) if device == "cpu" and not answers_itself else None
    measured = dataset.validation_rows / max(rows.looked_at, 1) * (1 + steps // (spec.eval_steps or steps + 1))
    return Estimate(
        strategy=spec.strategy,
        tuning=spec.tuning,
        device=device,
        dtype=dtype,
        parameters=network.parameters,
        trainable_parameters=network.adapter(spec) if spec.tuning == "lora" else network.parameters,
        rows=round(len(rows.lengths) * share),
        tokens=round(sum(rows.lengths) * share),
        longest_row=max(rows.widths, default=0),
        truncated_rows=round(rows.truncated * share),
        masked_rows=round(rows.masked * share),
        steps=steps,
        **asdict(settled),
        memory_bytes=needed,
        memory=memory,
        memory_there_is=memory_bytes(),
        disk_bytes=disk_bytes(spec, model),
        seconds=gflops and _seconds(spec, network, rows, drawn, steps, measured, gflops),
        matmul_gflops=gflops,
        notes=tuple(_notes(spec, settled, dataset, rows, needed, device)),
    )


def read_rows(model: Path, dataset: Path, max_length: int, strategy: str) -> Rows:
    """Tokenise the rows to learn as `model` writes them, as the strategy does: a pair is one row of two texts."""
    tokenizer, template = load_tokenizer(model), ChatTemplate.load(model)
    found: list[tuple[int, int, int]] = []
    truncated = masked = looked_at = unjoined = 0
    texts = 1
    for record in islice(read_records(dataset, "train"), ROWS_LOOKED_AT):
        looked_at += 1
        if isinstance(record, Prompted):
            text = template.render(record.messages, add_generation_prompt=True)
            length = min(len(tokenizer.encode(text, add_special_tokens=False).ids), max_length)
            found.append((length, length, 0))
            continue
        examples = [encode_example(tokenizer, template, each) for each in _texts(record)]
        if strategy == "pretrain":  # documents are joined, and cut into blocks
            unjoined += sum(len(each.input_ids) for each in examples if each)
            continue
        learned = [0 if e is None else sum(label != IGNORED for label in e.labels[1:max_length]) for e in examples]
        truncated += any(e is not None and len(e.input_ids) > max_length for e in examples)
        lengths = [min(len(e.input_ids), max_length) for e in examples if e is not None]
        apart = strategy == "kto"
        masked += not all(learned)
        if apart:
            found += [(length, length, count) for length, count in zip(lengths, learned, strict=False) if count]
        elif all(learned):
            texts = len(examples)
            found.append((sum(lengths), max(lengths), sum(learned)))
    blocks = [max_length] * (unjoined // max_length) + [unjoined % max_length] * (unjoined % max_length > 1)
    found += [(length, length, length - 1) for length in blocks]
    lengths, widths, scored = ([each[at] for each in found] for at in range(3))
    return Rows(texts, lengths, widths, scored, truncated, masked, looked_at)


def _texts(record: Record) -> Iterator[Record]:
    if isinstance(record, Preference):
        yield from (record.answered(record.chosen), record.answered(record.rejected))
    else:
        yield record


def _batches(rows: Rows, size: int, seed: int) -> list[Batch]:
    """Those of the first epoch, as the trainer draws them."""
    order = order_by_length(rows.widths, size, seed * 1_000_003)
    found = []
    for at in range(0, len(order), size):
        chosen = order[at : at + size]
        count, width = len(chosen), max(rows.widths[row] for row in chosen)
        tokens = count * rows.texts * width
        found.append(Batch(count, width, tokens, tokens * width, sum(rows.scored[row] for row in chosen)))
    return found


def _activations(
    spec: TrainSpec, rows: Rows, network: Network, batch: Batch, device: str, width: int
) -> dict[str, int]:
    """Bytes of a batch, or of as much of it as is computed at once."""
    together = batch.rows // spec.num_processes
    together = max(1, min(together, FIRST_TOKENS[device] // (batch.width * rows.texts)))
    tokens = together * rows.texts * batch.width
    hidden, inner = _KEPT[_layers_of(spec, device)]
    values = hidden * network.hidden + inner * network.inner
    layers = 1 if spec.gradient_checkpointing else network.layers
    inputs = network.layers * network.hidden if spec.gradient_checkpointing else 0
    scored = batch.scored * together / batch.rows
    if spec.tuning == "lora":
        scored = min(scored, ROWS_AT_ONCE)
    return {
        "activations": int(tokens * width * (values * layers + inputs)),
        "logits": int(scored * network.vocabulary * 4 * _LOGITS),
    }


def _most(
    spec: TrainSpec, memory: Mapping[str, int], rows: Rows, batches: Sequence[Batch], network: Network, held_out: int
) -> int:
    """Bytes at the heaviest moment: in a step, with the held-out rows, or as whole models are made."""
    held = memory["start"] + memory["weights"]
    # They are measured without a gradient, but with all their logits at once where the head is not a plain one.
    scored = max((batch.scored * min(1, held_out / batch.rows) for batch in batches if rows.texts == 1), default=0)
    measuring = held + memory["gradients and optimizer"] + int(scored * network.vocabulary * 4 * _LOGITS)
    after = held + 5 * network.parameters if spec.merge or spec.export_gguf else 0
    return max(sum(memory.values()), measuring, after)


def _layers_of(spec: TrainSpec, device: str) -> str:
    """Who computes the layers: see `fast_layers`."""
    plain = spec.tuning == "lora" and device == "cpu" and not (spec.use_dora or spec.lora_dropout)
    return "qlora" if spec.strategy == "qlora" else "ours" if plain else "library"


def _seconds(
    spec: TrainSpec, network: Network, rows: Rows, batches: Sequence[Batch], steps: int, measured: float, gflops: float
) -> float:
    """Multiplications of the network, forward and back, at the share of the rate that is reached, and the start.

    Args:
        measured: how often as many rows as were looked at are measured.
    """
    linear = sum(height * width for _, height, width in network.linear)

    def forward(tokens: float, squares: float, scored: float) -> float:
        head = network.vocabulary * network.hidden * scored
        return 2 * (linear * tokens + network.layers * network.hidden * squares + head)

    once = forward(*(sum(getattr(batch, of) for batch in batches) for of in ("tokens", "squares", "scored")))
    rounds = steps * spec.gradient_accumulation_steps / max(len(batches), 1)
    every_row = forward(sum(rows.lengths), rows.texts * sum(width**2 for width in rows.widths), sum(rows.scored))
    compared = spec.strategy in _COMPARED
    work = once * (rounds * (2 + (spec.tuning == "full") + spec.gradient_checkpointing) + compared)
    work += every_row * measured * (1 + compared)
    return round(_START_SECONDS + work / (gflops * 1e9 * _REACHED[_layers_of(spec, "cpu")]), 1)


def _notes(spec: TrainSpec, settled: Settled, dataset: Dataset, rows: Rows, needed: int, device: str) -> Iterator[str]:
    for what, count in (("lose their end", rows.truncated), ("lose their answer and are left out", rows.masked)):
        if count:
            yield f"max_length {settled.max_length}: {count} of {rows.looked_at} rows {what}"
    if rows.looked_at < dataset.train_rows:
        yield f"{rows.looked_at} of {dataset.train_rows} rows were looked at; the rest is taken to be like them"
    _, missing = provider_on(spec.provider, on_gpu=device == "cuda")
    if missing:
        yield f"provider {spec.provider}: {missing}"
    if device == "cpu" and needed > memory_bytes():
        yield (
            f"out of memory: {needed / 1e9:.1f} GB are needed, {memory_bytes() / 1e9:.1f} GB are there; lower "
            "max_length or lora_r, set gradient_checkpointing, or take strategy qlora or a smaller model"
        )
    if spec.strategy in ("grpo", "rlhf"):
        yield "its answers come on top of the tokens and are not counted"
