"""mergekit's YAML, as of its version 0.1.5, read as a MergeSpec's body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import JsonObject, JsonValue
from modelworks.core.registry import nearest
from modelworks.core.spec import parse_spec
from modelworks.merge.mergekit_file import File, Model, Slice
from modelworks.merge.mergekit_methods import (
    BASE_IGNORED,
    BASE_IS_MODEL,
    BASE_MAY_LACK,
    EVERY_PARAMETER,
    KNOWN,
    OUR_NAMES,
    REQUIRED,
    UNUSED,
    Parameter,
)
from modelworks.merge.method import Method, methods

_OUR_KEYS = {"device", "exclude_param_names_regex", "name", "output_dir", "replace", "report", "strict"}
DTYPES = {"float32", "float16", "bfloat16"}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Further templates that mergekit brings along.
UNKNOWN_TEMPLATES = {"alpaca", "exaone", "llama3", "mistral"}


@dataclass(frozen=True, slots=True)
class Translation:
    """A MergeSpec's body, and what of the file has no effect on it."""

    body: JsonObject
    notes: tuple[str, ...]


def is_mergekit(body: Mapping[str, Any]) -> bool:
    return "merge_method" in body


def translate(body: Mapping[str, Any]) -> Translation:
    """Read a mergekit configuration; our result has the tensors that mergekit makes with `dtype: float32`.

    Beside its keys there may be those of ours that say nothing of the tensors, e.g. `name` and `device`.

    Raises:
        Invalid: with one Problem for each thing that is wrong, at its key path.
    """
    ours = {key: value for key, value in body.items() if key in _OUR_KEYS}
    theirs = {key: value for key, value in body.items() if key not in _OUR_KEYS}
    found = _Translator(parse_spec(File, theirs, where="mergekit file")).translated()
    return replace(found, body=found.body | ours)


class _Translator:
    def __init__(self, file: File) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.base = self._base()
        self.models = sorted(self._models(), key=lambda item: self._rank(item[1].model))
        self.known: Mapping[str, Parameter] = KNOWN.get(file.merge_method, {})
        self.method: Method[Any] | None = methods().get(file.merge_method)
        if file.merge_method not in KNOWN:
            self._tell(
                "merge_method", f"mergekit has none called {file.merge_method!r}", nearest(file.merge_method, KNOWN)
            )
        elif self.method is None:
            ours = nearest(file.merge_method, KNOWN.keys() & methods().keys())
            self._tell("merge_method", f"{file.merge_method} is not among ours", ours)

    def translated(self) -> Translation:
        file = self.file
        if bool(file.models) + bool(file.slices) + (file.modules is not None) != 1:
            self._tell("models", "none of models and slices is given, or more than one", "give exactly one of them")
        if file.modules is not None:
            self._tell(
                "modules", "several modules of one model cannot be merged", "merge text models, by models or slices"
            )
        in_slices = [item for part in file.slices for item in part.sources if self._merges(item)]
        listed = sorted(in_slices, key=lambda item: self._rank(item.model))
        named = dict.fromkeys(item.model for item in (*(item for _, item in self.models), *listed))
        body: JsonObject = {"method": file.merge_method, "models": list(named)}
        if self.base is not None:
            body["base"] = self.base
        body["params"] = self._defaults() | self._read("parameters", file.parameters, shared=True)
        if file.models:
            body["model_params"] = [
                self._read(f"{where}.parameters", item.parameters, shared=False) for where, item in self.models
            ]
        if file.slices:
            body["slices"] = [self._slice(f"slices.{number}", part) for number, part in enumerate(file.slices)]
        self._check_required()
        body |= self._dtype() | self._tokens()
        if self.problems:
            shown = "; ".join(str(problem) for problem in self.problems)
            raise Invalid(f"mergekit file: {shown}", problems=tuple(self.problems))
        return Translation({key: value for key, value in body.items() if value not in ({}, [])}, tuple(self.notes))

    def _base(self) -> str | None:
        """mergekit lets every slice have its own base; all of ours have one."""
        own = [part.base_model for part in self.file.slices if part.base_model]
        method, base = self.file.merge_method, self.file.base_model or next(iter(own), None)
        if base is None and method in KNOWN.keys() - BASE_MAY_LACK:
            self._tell("base_model", f"{method} needs one", "name the model that the others were made from")
        for number, part in enumerate(self.file.slices):
            where = f"slices.{number}"
            if part.base_model not in {None, base}:
                self._tell(f"{where}.base_model", f"is {part.base_model}, another's is {base}", "choose one base")
            if not part.sources:
                self._tell(f"{where}.sources", "there are none", "give layers of a model")
            elif base and method not in BASE_IGNORED and base not in {item.model for item in part.sources}:
                self._tell(f"{where}.sources", f"{base}, the base, is not among them", "give its layers as well")
        return base

    def _merges(self, item: Model) -> bool:
        """Whether it is merged: a base from which task vectors are taken is not."""
        return item.model != self.base or self.file.merge_method in BASE_IS_MODEL

    def _models(self) -> Iterator[tuple[str, Model]]:
        """Whole models, each with its key path."""
        models = self.file.models
        for place, item in enumerate(models):
            if item.model in {other.model for other in models[:place]}:
                self._tell(f"models.{place}", f"{item.model} is listed twice", "list it once, with its whole weight")
            elif self._merges(item):
                yield f"models.{place}", item
        if models and self.base is not None and self.base not in {item.model for item in models}:
            added = Model(model=self.base)  # as mergekit does
            if self._merges(added):
                yield "base_model", added

    def _rank(self, model: str) -> bool:
        """By what to sort models: mergekit's slerp goes from the base to the other, wherever it is listed."""
        return self.file.merge_method == "slerp" and model != self.base

    def _slice(self, where: str, part: Slice) -> JsonObject:
        if part.residual_weight is not None:
            self.notes.append(f"{where}.residual_weight has no effect, in mergekit neither")
        sources: list[JsonValue] = []
        for place, item in sorted(enumerate(part.sources), key=lambda source: self._rank(source[1].model)):
            start, stop = item.layer_range
            if start >= stop:
                self._tell(
                    f"{where}.sources.{place}.layer_range",
                    f"[{start}, {stop}] holds no layer",
                    "first, then one past the last",
                )
            own = self._read(f"{where}.sources.{place}.parameters", item.parameters, shared=False)
            sources.append({"model": item.model, "layer_range": [start, stop], "params": own})
        return {"sources": sources, "params": self._read(f"{where}.parameters", part.parameters, shared=True)}

    def _read(self, where: str, given: Mapping[str, Any], *, shared: bool) -> JsonObject:
        """Parameters by our names, without those that mergekit ignores there."""
        found: JsonObject = {}
        for name, value in given.items():
            path, known = f"{where}.{name}", self.known.get(name)
            if known is None and name not in EVERY_PARAMETER:
                self._tell(path, "no method of mergekit has this parameter", nearest(name, EVERY_PARAMETER))
            elif known is None or name in UNUSED.get(self.file.merge_method, UNUSED[""]):
                self.notes.append(f"{path} has no effect on {self.file.merge_method}")
            elif not shared and not known.per_model:
                self.notes.append(f"{path} has no effect: it is the same for all models, and belongs in parameters")
            elif value is not None:
                found |= self._named(path, name, _plain(value))
        return found

    def _named(self, where: str, name: str, value: JsonValue) -> JsonObject:
        if self.method is None:
            return {}
        ours = OUR_NAMES.get((self.method.name, name), name)
        if ours in self._fields():
            return {ours: value}
        if value != self.known[name].default:
            self._tell(where, f"our {self.method.name} has no such parameter", nearest(name, self._fields()))
        return {}

    def _fields(self) -> Mapping[str, object]:
        """Our method's parameters by the names they are given by, with their defaults."""
        fields = self.method.params_type.model_fields if self.method else {}
        return {field.alias or name: field.default for name, field in fields.items()}

    def _defaults(self) -> JsonObject:
        """What holds in mergekit where nothing is said, as far as it is not what holds here."""
        fields = self._fields()
        values: JsonObject = {} if "rescale_norm" not in fields else {"rescale_norm": "l1"}
        for name, known in self.known.items():
            ours = OUR_NAMES.get((self.file.merge_method, name), name)
            if known.default not in (REQUIRED, None) and ours in fields and fields[ours] != known.default:
                values[ours] = known.default
        return values

    def _check_required(self) -> None:
        for name in (name for name, known in self.known.items() if known.default == REQUIRED):
            if name in self.file.parameters:
                continue
            for where, given in self._places(per_model=self.known[name].per_model):
                if not any(name in parameters for parameters in given):
                    self._tell(
                        where, f"{self.file.merge_method} needs {name}, and has no default for it", f"e.g. {name}: 0.5"
                    )

    def _places(self, *, per_model: bool) -> Iterator[tuple[str, tuple[Mapping[str, Any], ...]]]:
        """Where a parameter may be given, beside the parameters of the whole file."""
        if not per_model:
            yield from ((f"slices.{number}", (part.parameters,)) for number, part in enumerate(self.file.slices))
            if not self.file.slices:
                yield "parameters", ()
            return
        yield from ((where, (item.parameters,)) for where, item in self.models)
        for number, part in enumerate(self.file.slices):
            for place, item in enumerate(part.sources):
                if self._merges(item):
                    yield f"slices.{number}.sources.{place}", (item.parameters, part.parameters)

    def _dtype(self) -> JsonObject:
        key = "out_dtype" if self.file.out_dtype else "dtype"
        for name in ("dtype", "out_dtype"):
            value = getattr(self.file, name)
            if value and value.removeprefix("torch.") not in DTYPES | {"float64"}:
                self._tell(name, f"{value!r} is none", f"choose {', '.join(sorted(DTYPES))}")
        wanted = (self.file.out_dtype or self.file.dtype or "").removeprefix("torch.")
        if wanted == "float64":
            self._tell(key, "float64 is not written", "choose float32; it is computed in float32 as well")
        if self.file.out_dtype and self.file.dtype not in {None, "float32", "torch.float32"}:
            self.notes.append(f"dtype {self.file.dtype} has no effect: float32 is computed with, and rounded once")
        return {"dtype": wanted} if wanted else {}

    def _tokens(self) -> JsonObject:
        file = self.file
        found: JsonObject = {}
        if file.tokenizer_source and file.tokenizer:
            self._tell("tokenizer", "is given beside tokenizer_source", "give one of them")
        choice: JsonObject = dict(file.tokenizer) if file.tokenizer else {"source": file.tokenizer_source}
        if file.tokenizer or file.tokenizer_source:
            # mergekit always trims the embeddings to the tokens.
            given = {key: value for key, value in choice.items() if value is not None}
            found["tokenizer"] = {"source": "union", "pad_to_multiple_of": 1, **given}
        if file.chat_template in UNKNOWN_TEMPLATES:
            self._tell(
                "chat_template", f"{file.chat_template} is not known here", "give chatml, auto, or the Jinja text"
            )
        if file.chat_template:
            found["chat_template"] = CHATML if file.chat_template == "chatml" else file.chat_template
        return found

    def _tell(self, where: str, what: str, remedy: str) -> None:
        self.problems.append(Problem(where, what, remedy))


def _plain(value: Any) -> JsonValue:
    """A parameter's value without the freedoms that mergekit allows: a lone {filter, value}, numbers as text."""
    if isinstance(value, dict):
        return [{key: item if key == "filter" else _plain(item) for key, item in value.items()}]
    if isinstance(value, list):
        flat = [_plain(item) for item in value]
        return [item[0] if isinstance(item, list) and isinstance(item[0], dict) else item for item in flat]
    if isinstance(value, str):
        try:
            return float(value)  # YAML reads 1e-5 as a text
        except ValueError:
            return value
    return value if isinstance(value, bool | int | float) else str(value)
