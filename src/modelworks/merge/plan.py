"""The preflight of a merge, by headers and configs alone: every problem at once, or the plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import Adapter, AnyArtifact, Model
from modelworks.core.registry import nearest
from modelworks.merge.fit import (
    HEAD,
    MERGEABLE,
    Expert,
    config_of,
    device_problem,
    excluded,
    fit_adapter,
    fit_model,
    sound_model,
)
from modelworks.merge.layers import Origin, origins
from modelworks.merge.lora import BLOCK_ROWS, not_low_rank
from modelworks.merge.method import Method, Params, methods
from modelworks.merge.settings import Settings
from modelworks.merge.spec import MergeSpec, OutputDtype
from modelworks.merge.tokenizer import choose_template
from modelworks.merge.vocabulary import Vocabulary, is_vocabulary, plan_vocabulary, vocabulary_rows
from modelworks.weights.reader import TensorInfo
from modelworks.weights.writer import Planned

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of one model: `expert` by its place in the plan, `tensor` by its own name there."""

    expert: int
    tensor: str
    # The result's name of it, if its rows are put where the result's tokens are.
    aligned: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor of the result: merged with these parameters, or copied from `base` or else the first source."""

    output: Planned
    base: Source | None
    sources: tuple[Source, ...]
    merged: bool
    params: Params
    each: tuple[Params, ...]

    @property
    def elements(self) -> int:
        return self.output.elements


BASE = -1


@dataclass(frozen=True)
class Plan:
    """What is to be done. The frame gives the result its shapes, config and tokenizer: the base, or the first model."""

    method: Method[Any]
    frame: Model
    base: Expert | None
    experts: tuple[Expert, ...]
    steps: tuple[Step, ...]
    # Of the result; None: as the frame.
    dtype: OutputDtype | None
    # What differs between the models without making the merge wrong.
    warnings: tuple[str, ...] = ()
    # Whose tokens the result has; None: the frame's, as every model.
    vocabulary: Vocabulary | None = None
    # None: as it is with the tokenizer.
    chat_template: str | None = None

    def expert(self, source: Source) -> Expert:
        found = self.base if source.expert == BASE else self.experts[source.expert]
        assert found is not None
        return found

    @cached_property
    def size_bytes(self) -> int:
        return sum(step.output.size_bytes for step in self.steps)


def make_plan(spec: MergeSpec, inputs: Mapping[str, AnyArtifact]) -> Plan:
    """Check everything, and lay out what is to be done.

    Args:
        inputs: what the names in the spec mean; of MODEL+ADAPTER each part.

    Raises:
        Invalid: with one Problem for each thing that is wrong.
    """
    problems: list[Problem] = []
    warnings: list[str] = []
    method = _method(spec, problems)
    settings = None
    if method is not None:
        settings = Settings(method, spec.params, spec.weights, spec.model_params, len(spec.models), problems)
        settings.at("", 0.0, {}, [(place, {}) for place in range(len(spec.models))])
    frame = _frame(spec, inputs, method, problems)
    whole = None if frame is None else _as_expert(frame, method, problems)
    experts = [_expert(spec, name, inputs, whole, problems, warnings) for name in spec.models]
    problems += filter(None, [device_problem(spec.device)])
    if method is None or settings is None or frame is None or whole is None:
        excluded(spec.exclude_param_names_regex, {}, problems)
        raise _refusal(problems)
    vocabulary, template = _tokens(spec, whole, experts, problems, warnings)
    # A method that rounds everything to bfloat16 has no more to give.
    dtype = spec.dtype if method.precision == "float32" else "bfloat16"
    if spec.dtype not in {None, dtype}:
        problems.append(Problem("dtype", f"{method.name} gives bfloat16", "leave it out, or choose another method"))
    laid_out = origins(spec, whole.tensors, problems)
    left_out = excluded(spec.exclude_param_names_regex, {origin.name: origin for origin in laid_out}, problems)
    found = tuple(expert for expert in experts if expert is not None)
    base = whole if spec.base else None
    steps = [_step(origin, whole, base, experts, settings, dtype, left_out, vocabulary) for origin in laid_out]
    if method.adapters_only:
        problems += _no_adapters(spec, method, whole, experts)
    if method.gives_adapter and not problems:
        steps = list(_factored(steps, method, found))
        if spec.slices or not any(step is not None and step.merged for step in steps):
            what = "an adapter has the layers of its base" if spec.slices else "no matrix is left to make an adapter of"
            problems.append(Problem("slices" if spec.slices else "models", what, "see exclude_param_names_regex"))
    if problems:
        raise _refusal(problems)
    made = tuple(step for step in steps if step is not None)
    return Plan(method, frame, base, found, made, dtype, tuple(dict.fromkeys(warnings)), vocabulary, template)


def spans(shape: Sequence[int], chunk_elements: int) -> Iterator[tuple[int, int]]:
    """Cut a tensor into runs of elements of about that many; matrices at whole blocks of rows."""
    total = math.prod(shape)
    block = BLOCK_ROWS * (total // shape[0]) if len(shape) > 1 and total else 1
    step = max(1, chunk_elements // block) * block
    for start in range(0, total, step):
        yield start, min(start + step, total)


def _refusal(problems: list[Problem]) -> Invalid:
    shown = "; ".join(str(problem) for problem in problems[:8])
    more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    coded = tuple(replace(problem, code=problem.code or "bad_parameter") for problem in problems)
    return Invalid(f"these cannot be merged: {shown}{more}", problems=coded)


def _method(spec: MergeSpec, problems: list[Problem]) -> Method[Any] | None:
    known = methods()
    method = known.get(spec.method)
    if method is None:
        problems.append(Problem("method", f"none is called {spec.method!r}", nearest(spec.method, known)))
        return None
    least, most = method.models
    counts = {len({source.model for source in part.sources} & set(spec.models)) for part in spec.slices}
    for count in sorted(counts or {len(spec.models)}):
        if count < least or (most is not None and count > most):
            wanted = str(least) if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            problems.append(Problem("models", f"{count} given, {method.name} merges {wanted}", "beside the base"))
    return method


def _frame(
    spec: MergeSpec, inputs: Mapping[str, AnyArtifact], method: Method[Any] | None, problems: list[Problem]
) -> Model | None:
    name = spec.base or spec.models[0].partition("+")[0]
    base = inputs[name]
    if spec.base is None and method is not None and method.needs_base:
        problems.append(Problem("base", f"{method.name} needs one", "name the model that the others were made from"))
        return base if isinstance(base, Model) else None
    if isinstance(base, Model):
        return base
    if isinstance(base, Adapter):
        what, remedy = f"{name} is an adapter, not a full model", f"its base is {base.base_name}"
        problems.append(Problem("base", what, remedy, "adapter_mismatch"))
    else:
        problems.append(Problem("base", f"{name} is a {base.kind}, not a model"))
    return None


def _as_expert(frame: Model, method: Method[Any] | None, problems: list[Problem]) -> Expert | None:
    whole = sound_model(frame.name, frame, problems)
    if whole and method and method.precision == "bfloat16" and config_of(frame)["tied"]:
        # merging-eval counts parameters, and a head that repeats the embedding is none.
        tensors = {name: info for name, info in whole.tensors.items() if name != HEAD}
        return Expert(frame, {name: name for name in tensors}, tensors)
    return whole


def _expert(
    spec: MergeSpec,
    name: str,
    inputs: Mapping[str, AnyArtifact],
    frame: Expert | None,
    problems: list[Problem],
    warnings: list[str],
) -> Expert | None:
    first, _, second = name.partition("+")
    artifact, adapter = inputs[first], inputs[second] if second else None
    if isinstance(artifact, Adapter) and not second:
        return fit_adapter(name, artifact, frame, problems)
    if isinstance(artifact, Model):
        model = frame
        if frame is None or artifact.id != frame.model.id:
            model = fit_model(first, artifact, frame, spec.tokenizer is not None, problems, warnings)
        if adapter is None:
            return model
        if isinstance(adapter, Adapter):
            return fit_adapter(second, adapter, model, problems)
        first, artifact = second, adapter
    problems.append(Problem(name, f"{first} is a {artifact.kind}, which does not belong there"))
    return None


def _tokens(
    spec: MergeSpec,
    frame: Expert,
    experts: Sequence[Expert | None],
    problems: list[Problem],
    warnings: list[str],
) -> tuple[Vocabulary | None, str | None]:
    """Whose tokens the result has, and its chat template."""
    whose = spec.base or spec.models[0].partition("+")[0]
    members = [(whose, frame), *((name, expert) for name, expert in zip(spec.models, experts, strict=True) if expert)]
    named = [(name, expert.model, vocabulary_rows(expert.tensors)) for name, expert in members]
    vocabulary = plan_vocabulary(spec, named, problems, warnings)
    for name, expert in members if vocabulary is not None and vocabulary.moves else ():
        if changed := next(filter(is_vocabulary, expert.changes or ()), None):
            what = f"changes {changed}, whose rows are moved"
            problems.append(Problem(name, what, "fold the adapter into its base first", "tokenizer_conflict"))
    folders = {name: model.path for name, model, _ in named}
    return vocabulary, choose_template(spec.chat_template, folders, problems, warnings)


def _no_adapters(
    spec: MergeSpec, method: Method[Any], frame: Expert, experts: Sequence[Expert | None]
) -> Iterator[Problem]:
    for name, expert in zip(spec.models, experts, strict=True):
        if expert is None:
            continue
        if expert.adapter is None or expert.model.id != frame.model.id:
            what = f"is a full model, and {method.name} takes adapters of {frame.model.name}"
            yield Problem(name, what, "use task_arithmetic, or make an adapter of it with lora_extract")
        elif method.gives_adapter and (whole := not_low_rank(expert.changes or {})):
            yield Problem(name, f"{whole}, so it has no factors to add up", "extract from its model with lora_extract")


def _factored(steps: Sequence[Step | None], method: Method[Any], experts: Sequence[Expert]) -> Iterator[Step]:
    """What of a model is looked at for an adapter; `merged` is what has a part in it."""
    for step in steps:
        if step is None:
            continue
        if not method.adapters_only:
            is_covered = len(step.output.shape) == 2 and method.covers(step.output.name, step.params)
            yield replace(step, merged=step.merged and is_covered)
        elif step.merged and any(source.tensor in (experts[source.expert].changes or {}) for source in step.sources):
            yield step


def _step(
    origin: Origin,
    frame: Expert,
    base: Expert | None,
    experts: Sequence[Expert | None],
    settings: Settings,
    dtype: OutputDtype | None,
    left_out: set[str],
    vocabulary: Vocabulary | None,
) -> Step | None:
    """None if something is wrong with it; what, is among the problems."""
    places = [place for place, _ in origin.parts]
    held = settings.at(origin.name, origin.depth, origin.params, list(zip(places, origin.part_params, strict=True)))
    if held is None:
        return None
    info: TensorInfo = frame.tensors[origin.base]
    shape, aligned, sources = info.shape, None, []
    if vocabulary is not None and vocabulary.moves and is_vocabulary(origin.name):
        shape, aligned = (vocabulary.size, *shape[1:]), origin.name
    for place, name in origin.parts:
        expert = experts[place]
        if expert is None or name not in expert.names:
            return None
        sources.append(Source(place, expert.names[name], aligned))
    mergeable = info.dtype in MERGEABLE
    output = Planned(origin.name, _DTYPES[dtype] if dtype and mergeable else info.dtype, shape)
    merged = mergeable and origin.name not in left_out
    return Step(output, Source(BASE, origin.base, aligned) if base else None, tuple(sources), merged, *held)
