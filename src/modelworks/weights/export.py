"""Job kind `export`: a model or an adapter with its base as one file for other programs; also without a job."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from modelworks.core.context import JobContext
from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import Adapter, AnyArtifact, ArtifactKind, Draft, JsonObject, Model, Parent
from modelworks.core.spec import Spec, example
from modelworks.weights.folding import check_foldable, fold
from modelworks.weights.gguf_export import GgufDtype, check_gguf, gguf_bytes, write_gguf

PURPOSE = "gguf"
Progress = Callable[[int, int], None]


class ExportSpec(Spec):
    """Write a model, or an adapter folded into its base, as one file for other programs: GGUF for llama.cpp."""

    model_config = example(model="me/first", dtype="q8_0")

    model: str = Field(description="a model or an adapter: a name, alias or path")
    to: Literal["gguf"] = Field("gguf", description="gguf: for llama.cpp and what is made with it")
    dtype: GgufDtype = Field("f16", description="f16: every weight as it is; q8_0: half of it, rounded")
    name: str | None = Field(None, description="name to keep the file under; by default MODEL-gguf")
    replace: bool = Field(False, description="let the name move to this file if it is taken")

    @property
    def published_name(self) -> str:
        return self.name or f"{self.model.rstrip('/').rsplit('/', 1)[-1].replace(':', '-')}-gguf"


def check(spec: ExportSpec, inputs: Mapping[str, AnyArtifact]) -> None:
    """Raises Unsupported for what llama.cpp would not read, or would read otherwise."""
    made = whole_or_adapter(inputs[spec.model])
    if isinstance(made, Adapter):
        check_foldable(made.path)
    check_gguf(base_of(made, inputs).path)


def run(spec: ExportSpec, job: JobContext) -> JsonObject:
    """Write the file and publish it."""
    check(spec, job.inputs)
    made = whole_or_adapter(job.inputs[spec.model])
    place = job.stage("export") / file_name(spec.published_name, spec.dtype)
    job.progress(0, 1, "bytes", stage="preparing")
    write_file(made, base_of(made, job.inputs), place, spec.dtype, lambda done, all_: job.progress(done, all_, "bytes"))
    parents = (Parent.of("source", made),)
    recipe: JsonObject = {"kind": "export", "spec": spec.model_dump(mode="json")}
    job.publish(file_draft(place, spec.published_name, parents, recipe, replace=spec.replace))
    return {"name": spec.published_name, "bytes": place.stat().st_size}


def write_file(made: Model | Adapter, base: Model, place: Path, dtype: GgufDtype, progress: Progress) -> None:
    """Write a model, or an adapter of `base`, to `place`, which appears when it is whole."""
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as scratch:
        folder, partial = made.path, Path(scratch) / "file"
        if isinstance(made, Adapter):
            folder = Path(scratch) / "model"
            fold(base.path, made.path, folder)
        write_gguf(folder, partial, dtype, made.name, progress)
        partial.rename(place)


def file_draft(
    place: Path, name: str, parents: tuple[Parent, ...], recipe: JsonObject, *, replace: bool = False
) -> Draft:
    """The file `place`, alone in its folder, as what is to be published."""
    facts: JsonObject = {"filename": place.name, "purpose": PURPOSE}
    return Draft(
        kind=ArtifactKind.FILE, name=name, folder=place.parent, facts=facts, parents=parents, recipe=recipe,
        replace=replace,
    )  # fmt: skip


def file_name(name: str, dtype: GgufDtype) -> str:
    return f"{name.rsplit('/', 1)[-1].removesuffix('-gguf')}-{dtype}.gguf"


def file_size(spec: ExportSpec, inputs: Mapping[str, AnyArtifact]) -> int:
    """Bytes on the disk while it is made."""
    made = whole_or_adapter(inputs[spec.model])
    base = base_of(made, inputs)
    folded = base.size_bytes if isinstance(made, Adapter) else 0
    return folded + gguf_bytes(base.parameters, spec.dtype)


def base_of(made: Model | Adapter, inputs: Mapping[str, AnyArtifact]) -> Model:
    base = made if isinstance(made, Model) else inputs[made.base]
    if not isinstance(base, Model):
        raise Invalid(f"the base of {made.name} is a {base.kind}")
    return base


def whole_or_adapter(found: AnyArtifact) -> Model | Adapter:
    if not isinstance(found, Model | Adapter):
        raise Invalid(str(Problem("model", f"{found.name} is a {found.kind}", "name a model or an adapter")))
    return found
