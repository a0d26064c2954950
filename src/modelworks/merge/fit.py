"""Whether models fit together: found by headers and configs alone, with every problem named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from modelworks.core.config import count_gpus
from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import Adapter, Model
from modelworks.core.patterns import compile_pattern
from modelworks.merge.layers import layer_count
from modelworks.merge.lora import Change, Saved, find_changes
from modelworks.merge.tokenizer import POLICIES
from modelworks.merge.vocabulary import is_vocabulary
from modelworks.weights.gguf_checkpoint import LINK, open_weights
from modelworks.weights.loading import choose_device
from modelworks.weights.reader import Checkpoint, TensorInfo
from modelworks.weights.safety import PICKLES, read_object

MERGEABLE = frozenset({"F64", "F32", "F16", "BF16"})
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# What two checkpoints must agree on to be points of one weight space, beyond the shapes of their tensors.
_CONFIG_KEYS = (
    "model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "hidden_act", "num_local_experts", "num_experts", "rope_theta", "sliding_window",
)  # fmt: skip
# What may differ, though the result has only the frame's.
_SOFT_KEYS = ("rope_scaling", "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id")
_PACKED_FILES = ("quantize_config.json", "quant_config.json")
_PACKED_TENSORS = (
    ".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".absmax", ".quant_map", ".SCB",
)  # fmt: skip
# Of NVIDIA, AMD and Windows below; the driver may not list its GPUs in a container.
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
# Of each kind, so that one model does not drown the others.
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Expert:
    """One model to merge: full weights, perhaps changed by an adapter.

    `names` are its own names for the result's tensors; `changes` are by its own names.
    """

    model: Model
    names: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    adapter: Adapter | None = None
    changes: Mapping[str, Change] | None = None

    @property
    def artifact(self) -> Model | Adapter:
        return self.adapter or self.model


def sound_model(name: str, model: Model, problems: list[Problem]) -> Expert | None:
    """A full model by itself; None if its weights cannot be read as they are, which is told."""
    folder = model.path
    problem = _other_format(name, folder)
    if problem is None:
        try:
            config = config_of(model)
            with open_weights(folder) as checkpoint:
                tensors = checkpoint.tensors
            problem = _packing(name, folder, tensors)
        except (Invalid, OSError) as error:
            problem = _damage(name, error)
    found = [problem] if problem is not None else list(_contradictions(name, config, tensors))
    problems += found
    return None if found else Expert(model, {key: key for key in tensors}, tensors)


def fit_model(
    name: str, model: Model, frame: Expert | None, by_token: bool, problems: list[Problem], warnings: list[str]
) -> Expert | None:
    """A full model beside the one that the result is shaped after, if that one is sound.

    Args:
        name: what to call it in problems.
        by_token: whether embeddings are aligned, so that they may have another number of rows.
    """
    expert = sound_model(name, model, problems)
    if expert is None or frame is None:
        return expert
    whose, ours, theirs = frame.model.name, config_of(frame.model), config_of(model)
    different = [
        Problem(
            name, f"{key} is {theirs[key]!r}, in {whose} {ours[key]!r}", "merge models of one architecture",
            "architecture_mismatch",
        )
        for key in _CONFIG_KEYS
        if key in ours and key in theirs and ours[key] != theirs[key]
    ]  # fmt: skip
    warnings += [
        f"{name}: {key} is {theirs.get(key)!r}, in {whose} {ours.get(key)!r}, which the result has as well"
        for key in _SOFT_KEYS
        if key in theirs and ours.get(key) != theirs[key]
    ]
    problems += different
    if different:  # then so are its tensors, and that is said already
        return None
    names = {key: EMBEDDING if key == HEAD and key not in expert.tensors else key for key in frame.tensors}
    problems += _tensor_problems(name, expert.tensors, frame, names, by_token, bool(theirs["tied"]))
    return replace(expert, names={key: own for key, own in names.items() if own in expert.tensors})


def fit_adapter(name: str, adapter: Adapter, on: Expert | None, problems: list[Problem]) -> Expert | None:
    """An adapter laid upon a full model, if that one is sound."""
    try:
        with Checkpoint.open(adapter.path) as checkpoint:
            changes, found = find_changes(adapter.path, name, checkpoint.tensors)
    except (Invalid, OSError) as error:
        problems.append(_damage(name, error))
        return None
    remedy = "merge on its own base"
    if on is not None and adapter.base_digest != on.model.digest:
        found.insert(0, Problem(name, f"was trained on {adapter.base_name}, not on {on.model.name}", remedy))
    whose, tensors = (on.model.name, on.tensors) if on is not None else ("", {})
    for key, change in changes.items() if on is not None else ():
        if key not in tensors:
            found.append(Problem(name, f"changes {key}, which is not in {whose}", remedy))
        elif change.shape != tensors[key].shape:
            shapes = f"{list(change.shape)}, in {whose} it is {list(tensors[key].shape)}"
            found.append(Problem(name, f"changes {key} by shape {shapes}", remedy))
    if on is not None and HEAD not in on.tensors and isinstance(changes.get(EMBEDDING), Saved):
        what = f"brings its own {EMBEDDING}, which {on.model.name} uses for its head as well"
        found.append(Problem(name, what, "write the base's head out as a tensor of its own first"))
    problems += [replace(problem, code=problem.code or "adapter_mismatch") for problem in found]
    return None if on is None else replace(on, adapter=adapter, changes=changes)


def device_problem(device: str) -> Problem | None:
    """Whether there is no GPU though one is asked for; torch, which knows it exactly, is not loaded for this."""
    if device != "cuda" or _may_have_gpu():
        return None
    return Problem("device", "cuda is asked for, and there is no GPU here", "choose auto or cpu", "no_device")


def device_of(choice: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Where to compute; torch is asked where there may be a GPU."""
    return choose_device(choice) if choice == "cuda" or (choice == "auto" and _may_have_gpu()) else "cpu"


def _may_have_gpu() -> bool:
    return bool(count_gpus()) or any(Path(path).exists() for path in GPU_DEVICES)


def _other_format(name: str, folder: Path) -> Problem | None:
    """What a folder without safetensors holds instead."""
    if not folder.exists():
        return Problem(name, f"its folder {folder} is gone", "fetch it again", "damaged_file")
    files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    suffixes = {file.suffix.lower(): file.name for file in files}
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return Problem(name, "is an adapter, not a full model", "name its base as well", "adapter_mismatch")
    if ".safetensors" in suffixes or (folder / LINK).is_symlink():
        return None
    if ".gguf" in suffixes:
        return Problem(
            name, f"{suffixes['.gguf']} is GGUF, whose weights are packed", "name the file itself", "quantised"
        )
    if pickles := sorted(PICKLES & suffixes.keys()):
        what = f"{suffixes[pickles[0]]} is a pickle, which can run code when it is read"
        return Problem(name, what, "convert it to safetensors", "unsafe_format")
    return None


def _packing(name: str, folder: Path, tensors: Mapping[str, TensorInfo]) -> Problem | None:
    told = read_object(folder / "config.json").get("quantization_config")
    kind = str(told.get("quant_method", "")) if isinstance(told, dict) else ""
    packed = next((key for key, info in tensors.items() if key.endswith(_PACKED_TENSORS) or info.dtype[:2] == "F8"), "")
    files = [file for file in _PACKED_FILES if (folder / file).is_file()]
    if not told and not packed and not files:
        return None
    what = f"is quantised ({kind or packed or files[0]}), and packed weights cannot be merged"
    return Problem(name, what, "use the full weights", "quantised")


def _damage(name: str, error: Invalid | OSError) -> Problem:
    if isinstance(error, Invalid):
        return Problem(name, error.message, code="damaged_file")  # which says what to do
    return Problem(name, f"{error.filename}: {error.strerror}", "fetch it again", "damaged_file")


def _contradictions(name: str, config: Mapping[str, object], tensors: Mapping[str, TensorInfo]) -> Iterator[Problem]:
    """Where a model's config and its own tensors disagree."""
    layers, told = layer_count(tensors), config.get("num_hidden_layers")
    if isinstance(told, int) and 0 < layers < told:
        what = f"its config says {told} layers, its weights have {layers}"
        yield Problem(name, what, "fetch it again", "tensor_mismatch")
    for key, info in tensors.items():
        rows, wanted = info.shape[:1], config.get("vocab_size")
        if is_vocabulary(key) and wanted and rows != (wanted,):
            what = f"its config says vocab_size {wanted}, {key} has {rows[0]} rows"
            yield Problem(name, what, "set vocab_size to the rows", "vocabulary_mismatch")


def _tensor_problems(
    name: str,
    found: Mapping[str, TensorInfo],
    frame: Expert,
    names: Mapping[str, str],
    by_token: bool,
    tied: bool,
) -> Iterator[Problem]:
    whose = frame.model.name
    missing = [f"{key} is missing" for key, own in names.items() if own not in found]
    shapes, rows = [], []
    for key, own in names.items():
        if own not in found:
            continue
        theirs, ours = found[own], frame.tensors[key]
        if ours.dtype in MERGEABLE and theirs.dtype not in MERGEABLE:
            yield Problem(name, f"{key} is {theirs.dtype}, which is packed", "use the full weights", "quantised")
        elif is_vocabulary(key) and theirs.shape[1:] == ours.shape[1:]:
            rows += [f"{key} has {theirs.shape[0]} rows, in {whose} {ours.shape[0]}"] * (theirs.shape != ours.shape)
        elif theirs.shape != ours.shape:
            shapes.append(f"{key} has shape {list(theirs.shape)}, in {whose} {list(ours.shape)}")
    if rows and not by_token:
        yield Problem(name, "; ".join(rows), POLICIES, "vocabulary_mismatch")
    # A head that only repeats the embedding is no tensor of its own.
    extra = sorted(found.keys() - names.keys() - {HEAD})
    if HEAD in found and HEAD not in names and not tied:
        what = f"has a head of its own, {whose} takes its embedding for it"
        yield Problem(name, what, f"give {whose} an {HEAD} too, a copy of its embedding", "tied_heads")
    strange = [f"{key} is not in {whose}" for key in extra]
    for kind, hint in ((shapes, ""), (missing, f"{whose} has it; "), (strange, "")):
        told = [*kind[:_MOST_NAMED], *[f"so it is with {len(kind) - _MOST_NAMED} more"] * (len(kind) > _MOST_NAMED)]
        for what in told:
            yield Problem(name, what, f"{hint}merge models of one architecture", "tensor_mismatch")


def config_of(model: Model) -> dict[str, object]:
    """What should agree, as far as the config says it, `vocab_size`, and whether the head is `tied`."""
    config = read_object(model.path / "config.json")
    text = config.get("text_config")
    flat = {**config, **text} if isinstance(text, dict) else config
    rope = flat.get("rope_parameters")
    if isinstance(rope, dict):
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        # transformers 5 writes both in one
        plain = scaling.get("rope_type", "default") == "default"
        flat = {**flat, "rope_theta": rope.get("rope_theta"), "rope_scaling": None if plain else scaling}
    return {key: flat[key] for key in (*_CONFIG_KEYS, *_SOFT_KEYS, "vocab_size") if flat.get(key) is not None} | {
        "tied": bool(flat.get("tie_word_embeddings"))
    }


def excluded(patterns: Sequence[str], tensors: Mapping[str, object], problems: list[Problem]) -> set[str]:
    """The names that a pattern matches from their start on."""
    found: set[str] = set()
    for pattern in patterns:
        try:
            compiled = compile_pattern(pattern)
        except ValueError as error:
            problems.append(Problem("exclude_param_names_regex", str(error)))
            continue
        matched = {name for name in tensors if compiled.match(name)}
        # A head tied to the embedding is in no file, but may well be named.
        if tensors and not matched and not compiled.match(HEAD):
            remedy = "patterns match from the start of the name; begin with .* to match anywhere"
            problems.append(Problem("exclude_param_names_regex", f"{pattern!r} matches no tensor", remedy))
        found |= matched
    if tensors and len(found) == len(tensors):
        problems.append(Problem("exclude_param_names_regex", "leaves nothing to merge"))
    return found


def weight_files(folder: Path) -> list[Path]:
    return sorted(file.resolve() for file in (*folder.glob("*.safetensors"), *folder.glob(LINK)))
