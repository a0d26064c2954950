"""What a training will read and take: tokens, steps, memory, disk and seconds; torch is not loaded here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from modelworks.core.nouns import AnyArtifact, Dataset, Model
from modelworks.data.record import Preference, Prompted, Record, read_records
from modelworks.data.render import IGNORED, ChatTemplate, encode_example, load_tokenizer
from modelworks.train import rate
from modelworks.train.footprint import Network, device_of, disk_bytes, dtype_of, weights_bytes, width_of
from modelworks.train.microbatches import FIRST_TOKENS, memory_bytes
from modelworks.train.plan import adapter_to_go_on_from, chosen_inputs, lora_of, provider_on, settle
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Settled

# Of a larger dataset so many rows are tokenised, and the rest is taken to be like them.
ROWS_LOOKED_AT = 5000
# Values kept for the gradient, a token and layer, by what they are as wide as; and what is scratch beside them.
_KEPT_HIDDEN, _KEPT_INNER, _SCRATCH = 8, 4, 1.17
# Of a position that is scored: logits, their float32 copy, its softmax and its gradient.
_LOGITS = 3
# Share of the machine's matmul rate that a training reaches, measured over short runs.
_REACHED = 0.55


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a training does and takes. Memory is within a quarter, seconds within a factor of two on a quiet machine."""

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
    """Rows as tokens: of each what is read and what is scored."""

    lengths: Sequence[int]
    scored: Sequence[int]
    truncated: int
    masked: int
    looked_at: int


def estimate(spec: TrainSpec, inputs: Mapping[str, AnyArtifact], *, measure: bool = True) -> Estimate:
    """Tokenise the rows and work out the rest.

    Args:
        measure: multiply matrices for a moment, in a process of its own, to tell the seconds.
    """
    start = adapter_to_go_on_from(spec, inputs)
    spec = spec if start is None else spec.model_copy(update=dict(lora_of(start)))
    model, dataset = chosen_inputs(spec, inputs)
    settled, device, network = settle(spec, model), device_of(spec), Network.of(model)
    dtype = dtype_of(spec, device)
    rows = read_rows(model, dataset, settled.max_length)
    share = dataset.train_rows / max(rows.looked_at, 1)
    batches = math.ceil(max(len(rows.lengths) * share, 1) / settled.per_device_train_batch_size / spec.num_processes)
    steps_an_epoch = math.ceil(batches / spec.gradient_accumulation_steps)
    steps = spec.max_steps or math.ceil(steps_an_epoch * settled.num_train_epochs)
    memory = weights_bytes(spec, network, width_of(dtype)) | _activations(
        spec, settled, network, rows, device, width_of(dtype)
    )
    after = memory["start"] + memory["weights"] + 5 * network.parameters
    needed = max(sum(memory.values()), after if spec.merge or spec.export_gguf else 0)
    answers_itself = spec.strategy in ("grpo", "rlhf")
    gflops = rate.measured(dtype) if measure and device == "cpu" and not answers_itself else None
    return Estimate(
        strategy=spec.strategy,
        tuning=spec.tuning,
        device=device,
        dtype=dtype,
        parameters=network.parameters,
        trainable_parameters=network.adapter(spec) if spec.tuning == "lora" else network.parameters,
        rows=round(len(rows.lengths) * share),
        tokens=round(sum(rows.lengths) * share),
        longest_row=max(rows.lengths, default=0),
        truncated_rows=round(rows.truncated * share),
        masked_rows=round(rows.masked * share),
        steps=steps,
        **asdict(settled),
        memory_bytes=needed,
        memory=memory,
        memory_there_is=memory_bytes(),
        disk_bytes=disk_bytes(spec, model),
        seconds=gflops and _seconds(spec, network, rows, share * steps / steps_an_epoch, gflops),
        matmul_gflops=gflops,
        notes=tuple(_notes(spec, settled, dataset, rows, needed, device)),
    )


def read_rows(model: Model, dataset: Dataset, max_length: int) -> Rows:
    """Tokenise the rows to learn as `model` writes them; of a pair both answers are rows."""
    tokenizer, template = load_tokenizer(model.path), ChatTemplate.load(model.path)
    lengths, scored, truncated, masked, looked_at = [], [], 0, 0, 0
    for record in islice(read_records(dataset.path, "train"), ROWS_LOOKED_AT):
        looked_at += 1
        if isinstance(record, Prompted):
            text = template.render(record.messages, add_generation_prompt=True)
            lengths.append(min(len(tokenizer.encode(text, add_special_tokens=False).ids), max_length))
            continue
        examples = [encode_example(tokenizer, template, each) for each in _texts(record)]
        learned = [0 if e is None else sum(label != IGNORED for label in e.labels[1:max_length]) for e in examples]
        truncated += any(e is not None and len(e.input_ids) > max_length for e in examples)
        if not all(learned):
            masked += 1
            continue
        lengths.append(sum(min(len(e.input_ids), max_length) for e in examples if e is not None))
        scored.append(sum(learned))
    return Rows(lengths, scored or [0] * len(lengths), truncated, masked, looked_at)


def _texts(record: Record) -> Iterator[Record]:
    if isinstance(record, Preference):
        yield from (record.answered(record.chosen), record.answered(record.rejected))
    else:
        yield record


def _activations(
    spec: TrainSpec, settled: Settled, network: Network, rows: Rows, device: str, width: int
) -> dict[str, int]:
    """Bytes at the heaviest moment: the longest batch, or as much of it as is computed at once."""
    longest = sorted(zip(rows.lengths, rows.scored, strict=True), reverse=True)[: settled.per_device_train_batch_size]
    padded = len(longest) * (longest[0][0] if longest else 0)
    tokens = min(padded, max(FIRST_TOKENS[device], longest[0][0] if longest else 0))
    scored = sum(count for _, count in longest) * tokens / max(padded, 1)
    values = (_KEPT_HIDDEN * network.hidden + _KEPT_INNER * network.inner) * _SCRATCH
    layers = 1 if spec.gradient_checkpointing else network.layers
    inputs = network.layers * network.hidden if spec.gradient_checkpointing else 0
    return {
        "activations": int(tokens * width * (values * layers + inputs)),
        "logits": int(scored * network.vocabulary * 4 * _LOGITS),
    }


def _seconds(spec: TrainSpec, network: Network, rows: Rows, times: float, gflops: float) -> float:
    """Multiplications of the network, forward and back, at the share of the rate that is reached."""
    linear = sum(height * width for _, height, width in network.linear)
    passes = 4 if spec.tuning == "lora" else 6
    passes += 2 * spec.gradient_checkpointing
    attention = 6 * network.layers * network.hidden * sum(length**2 for length in rows.lengths)
    head = passes * network.vocabulary * network.hidden * sum(rows.scored)
    return round((passes * linear * sum(rows.lengths) + attention + head) * times / (gflops * 1e9 * _REACHED), 1)


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
