"""Whether models fit together: found by headers and configs alone, with every problem named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelworks.core.errors import Problem
from modelworks.core.nouns import Adapter, Model
from modelworks.merge.lora import LowRank, find_changes
from modelworks.weights.reader import Checkpoint, TensorInfo
from modelworks.weights.safety import read_object

MERGEABLE = frozenset({"F64", "F32", "F16", "BF16"})
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# What two checkpoints must agree on to be points of one weight space, beyond the shapes of their tensors.
_CONFIG_KEYS = (
    "model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "hidden_act", "vocab_size", "rope_theta", "sliding_window",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Expert:
    """One model to merge: full weights, perhaps changed by an adapter.

    `names` are its own names for the result's tensors; `changes` are by its own names.
    """

    model: Model
    names: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    adapter: Adapter | None = None
    changes: Mapping[str, LowRank] | None = None

    @property
    def artifact(self) -> Model | Adapter:
        return self.adapter or self.model


def base_problems(base: Model, found: list[Problem]) -> None:
    if read_object(base.path / "config.json").get("quantization_config"):
        found.append(Problem(base.name, "is quantised, and packed weights cannot be merged", "use the full weights"))


def fit_model(
    name: str, model: Model, frame: Model, tensors: Mapping[str, TensorInfo], problems: list[Problem]
) -> Expert:
    """A full model beside the one that the result is shaped after.

    Args:
        name: what to call it in problems.
        tensors: of the frame.
    """
    base_problems(model, problems)
    ours, theirs = config_of(frame), config_of(model)
    for key in _CONFIG_KEYS:
        if key in ours and key in theirs and ours[key] != theirs[key]:
            what = f"{key} is {theirs[key]!r}, in {frame.name} {ours[key]!r}"
            problems.append(Problem(name, what, "merge models of one architecture"))
    with Checkpoint.open(model.path) as checkpoint:
        found = checkpoint.tensors
    names: dict[str, str] = {}
    for key, info in tensors.items():
        own = EMBEDDING if key == HEAD and key not in found else key
        if own not in found:
            problems.append(
                Problem(name, f"{key} is missing", f"it is in {frame.name}; merge models of one architecture")
            )
            continue
        if found[own].shape != info.shape:
            what = f"{key} has shape {list(found[own].shape)}, in {frame.name} {list(info.shape)}"
            problems.append(Problem(name, what, "merge models of one shape and vocabulary"))
        if info.dtype in MERGEABLE and found[own].dtype not in MERGEABLE:
            problems.append(Problem(name, f"{key} is {found[own].dtype}, which is packed", "use the full weights"))
        names[key] = own
    # A head that only repeats the embedding is no tensor of its own.
    repeated = {HEAD} if theirs["tied"] else set()
    for key in sorted(found.keys() - tensors.keys() - repeated):
        problems.append(Problem(name, f"{key} is not in {frame.name}", "merge models of one architecture"))
    return Expert(model, names, found)


def fit_adapter(name: str, adapter: Adapter, on: Expert, problems: list[Problem]) -> Expert:
    """An adapter laid upon a full model."""
    model = on.model
    if adapter.base_digest != model.digest:
        problems.append(
            Problem(name, f"was trained on {adapter.base_name}, not on {model.name}", "merge on its own base")
        )
    with Checkpoint.open(adapter.path) as checkpoint:
        changes, found = find_changes(adapter.path, name, checkpoint.tensors)
    problems += found
    for key, change in changes.items():
        if key not in on.tensors:
            problems.append(Problem(name, f"changes {key}, which is not in {model.name}", "merge on its own base"))
        elif change.shape != on.tensors[key].shape:
            what = f"changes {key} by shape {list(change.shape)}, in {model.name} it is {list(on.tensors[key].shape)}"
            problems.append(Problem(name, what, "merge on its own base"))
    return Expert(model, on.names, on.tensors, adapter, changes)


def config_of(model: Model) -> dict[str, object]:
    """What must agree, as far as the config says it, and whether the head is `tied`."""
    config = read_object(model.path / "config.json")
    rope = config.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, dict) else config.get("rope_theta")
    flat = {**config, "rope_theta": theta}
    return {key: flat[key] for key in _CONFIG_KEYS if flat.get(key) is not None} | {
        "tied": bool(config.get("tie_word_embeddings"))
    }


def excluded(patterns: Sequence[str], tensors: Mapping[str, object], problems: list[Problem]) -> set[str]:
    """The names that a pattern matches from their start on."""
    import re2

    options = re2.Options()
    options.log_errors = False
    found: set[str] = set()
    for pattern in patterns:
        try:
            compiled = re2.compile(pattern, options)
        except re2.error as error:
            problems.append(Problem("exclude_param_names_regex", f"{pattern!r}: {error}"))
            continue
        matched = {name for name in tensors if compiled.match(name)}
        # A head tied to the embedding is in no file, but may well be named.
        if not matched and not compiled.match(HEAD):
            remedy = "patterns match from the start of the name; begin with .* to match anywhere"
            problems.append(Problem("exclude_param_names_regex", f"{pattern!r} matches no tensor", remedy))
        found |= matched
    if tensors and len(found) == len(tensors):
        problems.append(Problem("exclude_param_names_regex", "leaves nothing to merge"))
    return found


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
