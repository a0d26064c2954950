"""What can be known to be wrong before a training starts: checked when the job is submitted, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

from modelworks.core.errors import Invalid, ModelworksError, NotFound, Problem, Unsupported
from modelworks.core.generation import ChatTemplateMissing
from modelworks.core.ids import check_name
from modelworks.core.nouns import Adapter, AnyArtifact, Dataset, JsonObject, Model
from modelworks.core.registry import choose
from modelworks.core.spec import parse_spec
from modelworks.data.format import formats
from modelworks.data.record import Conversation, Preference, Prompted, Rated, Record, Text
from modelworks.data.render import ChatTemplate
from modelworks.train.cutting import cut_problems
from modelworks.train.footprint import device_of, least_memory
from modelworks.train.microbatches import memory_bytes
from modelworks.train.on_gpu import check_on_gpu
from modelworks.train.reporting import missing_packages
from modelworks.train.sharding import check_sharding
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Params, Settled, Strategy, strategies
from modelworks.weights.gguf_export import check_gguf
from modelworks.weights.reader import Checkpoint

_ROWS: Mapping[type[Record], str] = {
    Conversation: "conversations",
    Text: "plain text",
    Preference: "preferences",
    Prompted: "prompts",
    Rated: "rated answers",
}

# Tokens of a row that are kept where the spec leaves it to us and the model would read more.
LONGEST_ROW = 2048

# Strategies whose batches may be divided among processes.
TOGETHER = ("sft", "qlora", "pretrain", "dpo", "orpo")

_COMBINATION = "unsupported_combination"

Provider: TypeAlias = Literal["huggingface", "unsloth"]


def check(spec: TrainSpec, inputs: Mapping[str, AnyArtifact]) -> None:
    """Refuse what cannot work.

    Raises:
        Invalid: one Problem for each thing that is wrong.
    """
    problems = tuple(_problems(spec, inputs))
    if problems:
        error = Invalid("; ".join(str(problem) for problem in problems), problems=problems)
        codes = {problem.code for problem in problems}
        error.code = codes.pop() or error.code if len(codes) == 1 else error.code
        raise error


def choose_strategy(spec: TrainSpec) -> tuple[Strategy, Params]:
    """Return the strategy with its parameters parsed."""
    strategy = choose(strategies(), spec.strategy, "training strategy")
    return strategy, parse_spec(strategy.params, spec.params, where="params")


def chosen_inputs(spec: TrainSpec, inputs: Mapping[str, AnyArtifact]) -> tuple[Model, Dataset]:
    """The whole model that is trained, which for an adapter is its base, and the rows."""
    model, dataset = _whole(spec, inputs), inputs[spec.dataset]
    if not isinstance(model, Model) or not isinstance(dataset, Dataset):
        raise Invalid(f"training needs a model and a dataset, found a {model.kind} and a {dataset.kind}")
    return model, dataset


def adapter_to_go_on_from(spec: TrainSpec, inputs: Mapping[str, AnyArtifact]) -> Adapter | None:
    found = inputs[spec.model]
    return found if isinstance(found, Adapter) else None


def lora_of(adapter: Adapter) -> JsonObject:
    """The fields of a spec that an adapter has decided already."""
    config: JsonObject = json.loads((adapter.path / "adapter_config.json").read_text(encoding="utf-8"))
    targets = config["target_modules"]
    return {
        "lora_r": config["r"],
        "lora_alpha": config["lora_alpha"],
        "lora_target": [*sorted(map(str, targets))] if isinstance(targets, list) else targets,
        "use_dora": bool(config.get("use_dora")),
        "use_rslora": bool(config.get("use_rslora")),
    }


def settle(spec: TrainSpec, model: Model) -> Settled:
    """Decide what the spec leaves to us.

    Raises:
        NotFound: there is no such strategy.
        KeyError: the strategy does not train in this way, which `check` refuses.
    """
    strategy = choose(strategies(), spec.strategy, "training strategy")

    def chosen(field: str, ours: float) -> Any:
        asked = getattr(spec, field)
        return ours if asked == "auto" else asked

    return Settled(
        num_train_epochs=chosen("num_train_epochs", strategy.num_train_epochs),
        per_device_train_batch_size=chosen("per_device_train_batch_size", strategy.per_device_train_batch_size),
        max_length=chosen("max_length", min(context_length(model), LONGEST_ROW)),
        learning_rate=chosen("learning_rate", strategy.learning_rates[spec.tuning]),
    )


def provider_on(asked: Provider, *, on_gpu: bool) -> tuple[Provider, str]:
    """What loads the network, and why not what was asked for: unsloth only where it is installed and finds a GPU."""
    if asked != "unsloth" or (on_gpu and find_spec("unsloth")):
        return asked, ""
    return "huggingface", "it is not installed here" if on_gpu else "it needs a GPU"


def context_length(model: Model) -> int:
    """Tokens the model can read at once; the noun says it, config.json if the noun does not."""
    if model.context_length > 0:
        return model.context_length
    config = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
    return int(config.get("max_position_embeddings", 2048))


def _problems(spec: TrainSpec, inputs: Mapping[str, AnyArtifact]) -> Iterator[Problem]:
    strategy: Strategy | None = None
    try:
        strategy, params = choose_strategy(spec)
        yield from _strategy_problems(spec, strategy, params, inputs)
        check_name(spec.published_name)
    except (Invalid, NotFound) as error:
        yield from error.problems or (Problem(_where(error), error.message),)
    model, dataset = _whole(spec, inputs), inputs[spec.dataset]
    if not isinstance(model, Model):
        yield Problem("model", f"{spec.model} is a {model.kind}", "name a model")
    elif spec.max_length != "auto" and spec.max_length > context_length(model):
        limit = context_length(model)
        yield Problem("max_length", f"{spec.max_length} is more than the {limit} tokens {spec.model} reads", "lower it")
    if not isinstance(dataset, Dataset):
        yield Problem("dataset", f"{spec.dataset} is a {dataset.kind}", "name a dataset")
    elif dataset.train_rows == 0:
        yield Problem("dataset", f"{spec.dataset} has no row to train on", "hold out fewer rows")
    elif strategy is not None:
        yield from _row_problems(spec, strategy, dataset, model)
    yield from _lora_problems(spec, inputs)
    yield from _publishing_problems(spec, model)
    yield from _memory_problems(spec, model)
    yield from _watching_problems(spec, dataset)
    yield from _process_problems(spec)
    yield from check_on_gpu(spec)
    if spec.warmup_steps >= 1 and spec.warmup_steps != int(spec.warmup_steps):
        yield Problem("warmup_steps", f"{spec.warmup_steps} is no whole number of steps", "below 1 it is a share")


def _publishing_problems(spec: TrainSpec, model: AnyArtifact | None) -> Iterator[Problem]:
    if spec.merge and spec.tuning == "full":
        remedy = "remove it: the whole model is published anyway"
        yield Problem("merge", "has no meaning with tuning full", remedy, _COMBINATION)
    if (spec.merge or spec.export_gguf) and spec.strategy == "reward":
        yield Problem("merge, export_gguf", "a reward model writes no text", "remove them", _COMBINATION)
    elif spec.export_gguf and isinstance(model, Model):
        try:
            check_gguf(model.path)
        except Unsupported as error:
            yield Problem("export_gguf", error.message, code=_COMBINATION)


def _strategy_problems(
    spec: TrainSpec, strategy: Strategy, params: Params, inputs: Mapping[str, AnyArtifact]
) -> Iterator[Problem]:
    if spec.tuning not in strategy.learning_rates:
        yield Problem("tuning", f"{strategy.name} does not train every weight", "choose tuning lora", _COMBINATION)
    elif isinstance(model := _whole(spec, inputs), Model):
        yield from strategy.check(spec, params, inputs, settle(spec, model))
        if model.architecture.endswith("ForSequenceClassification") and strategy.name != "reward":
            what = f"{spec.model} is a reward model: it rates texts and writes none"
            yield Problem("model", what, "name it as params.reward_model, and a model that writes here")


def _whole(spec: TrainSpec, inputs: Mapping[str, AnyArtifact]) -> AnyArtifact:
    found = inputs[spec.model]
    return inputs[found.base] if isinstance(found, Adapter) else found


def _lora_problems(spec: TrainSpec, inputs: Mapping[str, AnyArtifact]) -> Iterator[Problem]:
    adapter, model = adapter_to_go_on_from(spec, inputs), _whole(spec, inputs)
    # A spec that was kept names every field.
    changed = [
        field
        for field in sorted(spec.model_fields_set)
        if field.startswith(("lora_", "use_dora", "use_rslora"))
        and getattr(spec, field) != TrainSpec.model_fields[field].default
    ]
    if spec.tuning == "full":
        if changed:
            remedy = "remove it, or choose tuning lora"
            yield Problem(", ".join(changed), "has no meaning with tuning full", remedy, _COMBINATION)
        if adapter:
            remedy = "choose tuning lora, or merge it into a model first"
            yield Problem("tuning", f"{spec.model} is an adapter", remedy, _COMBINATION)
    elif adapter:
        for field, has in lora_of(adapter).items():
            asked = sorted(spec.lora_target) if isinstance(spec.lora_target, tuple) else spec.lora_target
            if field in changed and has != (asked if field == "lora_target" else getattr(spec, field)):
                yield Problem(field, f"{spec.model} has {has}, and goes on with it", "leave it away")
    elif spec.lora_target != "all-linear" and isinstance(model, Model) and (names := _layers(model)):
        wanted = {spec.lora_target} if isinstance(spec.lora_target, str) else {*spec.lora_target}
        unknown = ", ".join(sorted(wanted - names))
        if unknown:
            has = ", ".join(sorted(names))
            yield Problem("lora_target", f"the model has no layer {unknown}", f"it has {has}", _COMBINATION)


def _layers(model: Model) -> set[str]:
    """The last names of the matrices in the files' headers, without the embeddings and the head."""
    with Checkpoint.open(model.path) as weights:
        matrices = (name.split(".") for name, tensor in weights.tensors.items() if len(tensor.shape) == 2)
        found = {parts[-2] for parts in matrices if parts[-1] == "weight" and len(parts) > 2}
    return found - {"embed_tokens", "wte", "wpe", "lm_head", "score"}


def _memory_problems(spec: TrainSpec, model: AnyArtifact | None) -> Iterator[Problem]:
    """What the rows take comes on top, and is divided until it fits."""
    on_cpu = device_of(spec) == "cpu"
    needed = spec.num_processes * least_memory(spec, model) if isinstance(model, Model) and on_cpu else 0
    if needed > memory_bytes():
        yield Problem(
            "memory",
            f"the weights and what is kept of each take about {needed / 1e9:.1f} GB, and {memory_bytes() / 1e9:.1f} GB "
            "are all there is",
            "take a smaller model, tuning lora, a lower lora_r, or strategy qlora",
            "out_of_memory",
        )


def _process_problems(spec: TrainSpec) -> Iterator[Problem]:
    if spec.parallel == "fsdp":
        yield from check_sharding(spec)
    if spec.num_processes > 1 and spec.strategy not in TOGETHER:
        remedy = f"{', '.join(TOGETHER)} can in more"
        yield Problem("num_processes", f"{spec.strategy} trains in one process", remedy, _COMBINATION)


def _watching_problems(spec: TrainSpec, dataset: AnyArtifact) -> Iterator[Problem]:
    yield from missing_packages(spec)
    if spec.eval_steps is None:
        for field in ("early_stopping_patience", "load_best_model_at_end"):
            if getattr(spec, field):
                yield Problem(field, "needs measurements to go by", "give eval_steps")
    elif isinstance(dataset, Dataset) and dataset.validation_rows == 0:
        yield Problem("eval_steps", f"{spec.dataset} holds out no row to measure", "hold out some, or leave it away")


def _row_problems(
    spec: TrainSpec, strategy: Strategy, dataset: Dataset, model: AnyArtifact | None
) -> Iterator[Problem]:
    known = formats()
    found = known.get(dataset.format)
    if found is not None and found.makes not in strategy.learns:
        needed = " or ".join(_ROWS[kind] for kind in strategy.learns)
        fitting = [each.name for each in strategies().values() if found.makes in each.learns]
        giving = ", ".join(sorted(each.name for each in known.values() if each.makes in strategy.learns))
        yield Problem(
            "dataset",
            f"{spec.dataset} holds {_ROWS[found.makes]} (format {found.name}); {strategy.name} learns from {needed}",
            f"import rows of one of the formats {giving}, or choose the strategy {' or '.join(fitting)}",
            "dataset_schema_mismatch",
        )
    elif isinstance(model, Model):
        try:
            if found is not None and found.makes is not Text:
                ChatTemplate.load(model.path).check()
            if strategy.name not in ("grpo", "rlhf") and spec.tuning in strategy.learning_rates:
                yield from cut_problems(model, dataset, settle(spec, model).max_length)
        except ChatTemplateMissing as error:
            yield Problem("model", error.message, code=error.code)


def _where(error: ModelworksError) -> str:
    return "strategy" if isinstance(error, NotFound) else "name"
