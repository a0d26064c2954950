"""The preflight of a merge, by headers and configs alone: every problem at once, or the plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import Adapter, AnyArtifact, Model
from modelworks.core.registry import nearest
from modelworks.core.spec import parse_spec
from modelworks.merge.lora import BLOCK_ROWS, LowRank, find_changes
from modelworks.merge.method import Method, Params, methods
from modelworks.merge.spec import MergeSpec, OutputDtype
from modelworks.weights.reader import Checkpoint, TensorInfo
from modelworks.weights.safety import read_object
from modelworks.weights.writer import Planned

MERGEABLE = frozenset({"F64", "F32", "F16", "BF16"})
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# What two checkpoints must agree on to be points of one weight space, beyond the shapes of their tensors.
_CONFIG_KEYS = (
    "model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "hidden_act", "vocab_size", "rope_theta", "sliding_window",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Expert:
    """One model to merge: a full checkpoint, or the changes of an adapter; `names` are its own names for the base's."""

    artifact: Model | Adapter
    names: Mapping[str, str]
    changes: Mapping[str, LowRank] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor of the result; copied from the base where it is not merged."""

    source: TensorInfo
    output: Planned
    merged: bool


@dataclass(frozen=True)
class Plan:
    method: Method[Any]
    params: Params
    weights: tuple[float, ...]
    base: Model
    experts: tuple[Expert, ...]
    steps: tuple[Step, ...]
    # Of the result; None: as the base.
    dtype: OutputDtype | None


def check(spec: MergeSpec, inputs: Mapping[str, AnyArtifact]) -> None:
    """Find everything wrong with a merge before any weight is read.

    Raises:
        Invalid: with one Problem for each thing that is wrong.
    """
    make_plan(spec, inputs)


def make_plan(spec: MergeSpec, inputs: Mapping[str, AnyArtifact]) -> Plan:
    """Check everything, and lay out what is to be done.

    Raises:
        Invalid: with one Problem for each thing that is wrong.
    """
    problems: list[Problem] = []
    method, params = _method(spec, problems)
    base = _base(spec, inputs, method, problems)
    if base is None or method is None or params is None:
        raise _refusal(problems)
    tensors = _tensors(base, method, problems)
    experts = [_expert(name, inputs[name], base, tensors, problems) for name in spec.models]
    # A method that rounds everything to bfloat16 has no more to give.
    dtype = spec.dtype if method.precision == "float32" else "bfloat16"
    if spec.dtype not in {None, dtype}:
        problems.append(Problem("dtype", f"{method.name} gives bfloat16", "leave it out, or choose another method"))
    steps = _steps(spec, dtype, tensors, problems)
    if problems:
        raise _refusal(problems)
    found = tuple(expert for expert in experts if expert is not None)
    return Plan(method, params, spec.weights or (1.0,) * len(found), base, found, steps, dtype)


def spans(shape: Sequence[int], chunk_elements: int) -> Iterator[tuple[int, int]]:
    """Cut a tensor into runs of elements of about that many; matrices at whole blocks of rows."""
    total = 1
    for size in shape:
        total *= size
    block = BLOCK_ROWS * (total // shape[0]) if len(shape) > 1 and total else 1
    step = max(1, chunk_elements // block) * block
    for start in range(0, total, step):
        yield start, min(start + step, total)


def _refusal(problems: list[Problem]) -> Invalid:
    shown = "; ".join(str(problem) for problem in problems[:8])
    more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    return Invalid(f"these cannot be merged: {shown}{more}", problems=tuple(problems))


def _method(spec: MergeSpec, problems: list[Problem]) -> tuple[Method[Any] | None, Params | None]:
    known = methods()
    method = known.get(spec.method)
    if method is None:
        problems.append(Problem("method", f"none is called {spec.method!r}", nearest(spec.method, known)))
        return None, None
    params = None
    try:
        params = parse_spec(method.params_type, spec.params)
    except Invalid as error:
        problems += [Problem(f"params.{found.where}", found.what, found.remedy) for found in error.problems]
    else:
        found = method.check(params, len(spec.models))
        problems += [Problem(f"params.{problem.where}", problem.what, problem.remedy) for problem in found]
    if spec.weights is not None and not method.takes_weights:
        problems.append(Problem("weights", f"{method.name} takes none", "leave them out, or use task_arithmetic"))
    elif spec.weights is not None and len(spec.weights) != len(spec.models):
        counts = f"{len(spec.weights)} weights for {len(spec.models)} models"
        problems.append(Problem("weights", counts, "give one a model, in the same order"))
    return method, params


def _base(
    spec: MergeSpec, inputs: Mapping[str, AnyArtifact], method: Method[Any] | None, problems: list[Problem]
) -> Model | None:
    if spec.base is None and method is not None and method.needs_base:
        problems.append(Problem("base", f"{method.name} needs one", "name the model that the others were made from"))
        return None
    name = spec.base or spec.models[0]
    base = inputs[name]
    if isinstance(base, Model):
        return base
    if isinstance(base, Adapter):
        problems.append(Problem("base", f"{name} is an adapter, not a full model", f"its base is {base.base_name}"))
    else:
        problems.append(Problem("base", f"{name} is a {base.kind}, not a model"))
    return None


def _tensors(base: Model, method: Method[Any], problems: list[Problem]) -> Mapping[str, TensorInfo]:
    _check_quantised(base, problems)
    with Checkpoint.open(base.path) as checkpoint:
        found = checkpoint.tensors
    # merging-eval counts parameters, and a head that repeats the embedding is none.
    skips_head = method.precision == "bfloat16" and _config(base)["tied"]
    return {name: info for name, info in found.items() if name != _HEAD} if skips_head else found


def _check_quantised(model: Model, problems: list[Problem]) -> None:
    if read_object(model.path / "config.json").get("quantization_config"):
        problems.append(
            Problem(model.name, "is quantised, and packed weights cannot be merged", "use the full weights")
        )


def _expert(
    name: str, artifact: AnyArtifact, base: Model, tensors: Mapping[str, TensorInfo], problems: list[Problem]
) -> Expert | None:
    try:
        if isinstance(artifact, Adapter):
            return _adapter(name, artifact, base, tensors, problems)
        if isinstance(artifact, Model):
            return _full(name, artifact, base, tensors, problems)
    except Invalid as error:  # its files are damaged; the other models may have problems as well
        problems.append(Problem(name, error.message))
        return None
    problems.append(Problem(name, f"is a {artifact.kind}, not a model"))
    return None


def _full(name: str, model: Model, base: Model, tensors: Mapping[str, TensorInfo], problems: list[Problem]) -> Expert:
    _check_quantised(model, problems)
    ours, theirs = _config(base), _config(model)
    for key in _CONFIG_KEYS:
        if key in ours and key in theirs and ours[key] != theirs[key]:
            what = f"{key} is {theirs[key]!r}, in {base.name} {ours[key]!r}"
            problems.append(Problem(name, what, "merge models of one architecture"))
    with Checkpoint.open(model.path) as checkpoint:
        found = checkpoint.tensors
    names: dict[str, str] = {}
    for key, info in tensors.items():
        own = _EMBEDDING if key == _HEAD and key not in found else key
        if own not in found:
            problems.append(
                Problem(name, f"{key} is missing", f"it is in {base.name}; merge models of one architecture")
            )
            continue
        if found[own].shape != info.shape:
            what = f"{key} has shape {list(found[own].shape)}, in {base.name} {list(info.shape)}"
            problems.append(Problem(name, what, "merge models of one shape and vocabulary"))
        if info.dtype in MERGEABLE and found[own].dtype not in MERGEABLE:
            problems.append(Problem(name, f"{key} is {found[own].dtype}, which is packed", "use the full weights"))
        names[key] = own
    # A head that only repeats the embedding is no tensor of its own.
    repeated = {_HEAD} if theirs["tied"] else set()
    for key in sorted(found.keys() - tensors.keys() - repeated):
        problems.append(Problem(name, f"{key} is not in {base.name}", "merge models of one architecture"))
    return Expert(model, names)


def _adapter(
    name: str, adapter: Adapter, base: Model, tensors: Mapping[str, TensorInfo], problems: list[Problem]
) -> Expert:
    if adapter.base_digest != base.digest:
        problems.append(
            Problem(name, f"was trained on {adapter.base_name}, not on {base.name}", "merge on its own base")
        )
    with Checkpoint.open(adapter.path) as checkpoint:
        changes, found = find_changes(adapter.path, name, checkpoint.tensors)
    problems += found
    for key, change in changes.items():
        if key not in tensors:
            problems.append(Problem(name, f"changes {key}, which is not in {base.name}", "merge on its own base"))
        elif change.shape != tensors[key].shape:
            what = f"changes {key} by shape {list(change.shape)}, in {base.name} it is {list(tensors[key].shape)}"
            problems.append(Problem(name, what, "merge on its own base"))
    return Expert(adapter, {}, changes)


def _config(model: Model) -> dict[str, object]:
    config = read_object(model.path / "config.json")
    rope = config.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, dict) else config.get("rope_theta")
    flat = {**config, "rope_theta": theta}
    return {key: flat[key] for key in _CONFIG_KEYS if flat.get(key) is not None} | {
        "tied": bool(config.get("tie_word_embeddings"))
    }


def _steps(
    spec: MergeSpec, wanted: OutputDtype | None, tensors: Mapping[str, TensorInfo], problems: list[Problem]
) -> tuple[Step, ...]:
    excluded = _excluded(spec.exclude_param_names_regex, tensors, problems)
    steps = []
    for info in sorted(tensors.values(), key=lambda info: (info.file, info.start)):
        merged = info.dtype in MERGEABLE and info.name not in excluded
        dtype = _DTYPES[wanted] if wanted and info.dtype in MERGEABLE else info.dtype
        steps.append(Step(info, Planned(info.name, dtype, info.shape), merged))
    return tuple(steps)


def _excluded(patterns: Sequence[str], tensors: Mapping[str, TensorInfo], problems: list[Problem]) -> set[str]:
    import re2

    options = re2.Options()
    options.log_errors = False
    excluded: set[str] = set()
    for pattern in patterns:
        try:
            compiled = re2.compile(pattern, options)
        except re2.error as error:
            problems.append(Problem("exclude_param_names_regex", f"{pattern!r}: {error}"))
            continue
        matched = {name for name in tensors if compiled.match(name)}
        # A head tied to the embedding is in no file, but may well be named.
        if not matched and not compiled.match(_HEAD):
            remedy = "patterns match from the start of the name; begin with .* to match anywhere"
            problems.append(Problem("exclude_param_names_regex", f"{pattern!r} matches no tensor", remedy))
        excluded |= matched
    if tensors and len(excluded) == len(tensors):
        problems.append(Problem("exclude_param_names_regex", "leaves nothing to merge"))
    return excluded
