"""The verbs on datasets, models and adapters: what a name means, bringing things in, lineage."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from modelworks.core import clock
from modelworks.core.config import Settings
from modelworks.core.errors import Conflict, Denied, Invalid, NotFound
from modelworks.core.hashing import digest_of, hash_file, list_files
from modelworks.core.ids import NAME_PATTERN, check_name, new_id
from modelworks.core.nouns import Adapter, AnyArtifact, Dataset, File, FileEntry, JsonObject, Model
from modelworks.core.paths import inside
from modelworks.core.registry import nearest
from modelworks.store import catalog, files
from modelworks.store.database import Database
from modelworks.train.rewards import BUILT_IN, FILE_PREFIX
from modelworks.weights.layout import inspect_adapter, inspect_model, what_is
from modelworks.weights.safety import check_folder

if TYPE_CHECKING:
    from modelworks.data.importer import ImportReport
    from modelworks.data.preview import Preview
    from modelworks.data.spec import ImportSpec

Shelf = Literal["models", "datasets", "files"]
A = TypeVar("A", bound=AnyArtifact)

_UNREGISTERED: JsonObject = {"note": "a folder that is not registered"}
HUB_NAME = re.compile(f"{NAME_PATTERN}/{NAME_PATTERN}")


class PerhapsOnHub(NotFound):
    """Nobody here knows this model, but its name could be one of the hub's."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, kw_only=True)
class LineageNode:
    """One artifact in a family tree: how it served its child, what made it, and what it was made from."""

    role: str
    kind: str
    name: str
    id: str
    digest: str
    job_id: str | None
    recipe: JsonObject
    metrics: dict[str, float]
    parents: tuple[LineageNode, ...]


@dataclass(frozen=True)
class Catalog:
    settings: Settings
    database: Database

    def resolve(self, shelf: Shelf, name: str) -> AnyArtifact:
        """Say what a name means: a registered name, alias or id; else a folder under an allowed root.

        Raises:
            NotFound: naming the nearest names, and the hub command for ORG/NAME.
            Denied: it is a folder outside the allowed roots.
        """
        found = catalog.find(self.database, self.settings.home, shelf, name)
        if found is not None:
            return found
        folder = self._folder_named(name)
        if folder is not None:
            return self._look_at(folder)
        message = f"no {shelf.removesuffix('s')} is called {name!r}"
        known = catalog.list_names(self.database, shelf)
        if shelf == "models" and HUB_NAME.fullmatch(name) and not self.settings.hub_offline:
            raise PerhapsOnHub(f"{message}; {nearest(name, known)}; from the hub: modelworks pull {name}", name)
        raise NotFound(f"{message}; {nearest(name, known)}")

    def model(self, name: str) -> Model | Adapter:
        found = self.resolve("models", name)
        if not isinstance(found, Model | Adapter):
            raise NotFound(f"{name!r} is a {found.kind}, not a model")
        return found

    def model_file(self, name: str, path: str) -> Path:
        """One of the files that a model or adapter was published with; raises NotFound."""
        model = self.model(name)
        if path not in {file.path for file in model.files}:
            told = ", ".join(sorted(file.path for file in model.files))
            raise NotFound(f"{model.name} has no file {path!r}; it has {told}")
        return model.path / path

    def dataset(self, name: str) -> Dataset:
        found = self.resolve("datasets", name)
        if not isinstance(found, Dataset):
            raise NotFound(f"{name!r} is a {found.kind}, not a dataset")
        return found

    def numbered(self, shelf: Shelf, number: int) -> AnyArtifact:
        """What bears a number on a shelf; raises NotFound."""
        found = catalog.numbered(self.database, self.settings.home, shelf, number)
        if found is None:
            raise NotFound(f"no {shelf.removesuffix('s')} has the number {number}")
        return found

    def base_of(self, adapter: Adapter) -> Model:
        """The model an adapter was trained on.

        Raises:
            NotFound: it is no longer here.
        """
        for found in (
            catalog.find(self.database, self.settings.home, "models", adapter.base),
            catalog.find(self.database, self.settings.home, "models", adapter.base_name),
        ):
            if isinstance(found, Model) and found.digest == adapter.base_digest:
                return found
        raise NotFound(f"{adapter.name} needs its base {adapter.base_name}, which is not here; pull or add it")

    def on_shelf(self, shelf: Shelf) -> list[AnyArtifact]:
        return catalog.list_artifacts(self.database, self.settings.home, shelf)

    def datasets(self) -> list[Dataset]:
        return [found for found in self.on_shelf("datasets") if isinstance(found, Dataset)]

    def servable(self) -> list[Model | Adapter]:
        return [found for found in self.on_shelf("models") if isinstance(found, Model | Adapter)]

    def check_free(self, shelf: Shelf, name: str, *, replace: bool) -> None:
        """Raises Conflict when `name` is in use and may not be taken over, Invalid when it is no name."""
        check_name(name)
        if not replace and name in catalog.list_names(self.database, shelf):
            raise Conflict(f"{name!r} exists already; choose another name or say --replace")

    def unused_name(self, shelf: Shelf, wanted: str) -> str:
        names = catalog.list_names(self.database, shelf)
        number, name = 2, wanted
        while name in names:
            number, name = number + 1, f"{wanted}-{number}"
        return check_name(name)

    def upload(self, source: Path, spec: ImportSpec) -> tuple[Dataset, ImportReport]:
        """Import a file or folder of rows; return the dataset and the report of the import. Blocks."""
        with self._imported(source, spec, keep=True) as (folder, report):
            return self._publish(folder, source, spec, report), report

    def upload_and_look(
        self, source: Path, spec: ImportSpec, model: str | None, max_length: int | None, *, keep: bool
    ) -> tuple[Dataset | None, ImportReport, Preview]:
        """Import, and see how `model` reads the rows; nothing is kept if it cannot, or without `keep`. Blocks."""
        with self._imported(source, spec, keep=keep) as (folder, report):
            seen = self._preview(folder, model, max_length)
            return self._publish(folder, source, spec, report) if keep else None, report, seen

    @contextmanager
    def _imported(self, source: Path, spec: ImportSpec, *, keep: bool) -> Iterator[tuple[Path, ImportReport]]:
        from modelworks.data.importer import import_file

        if keep:
            self.check_free("datasets", _dataset_name(source, spec), replace=spec.replace)
        read = source.rglob("*") if source.is_dir() else (source,)
        files.check_space(self.settings.home, 2 * sum(file.stat().st_size for file in read if file.is_file()))
        with self.staging() as folder:
            yield folder, import_file(source, folder, spec)

    def _publish(self, folder: Path, source: Path, spec: ImportSpec, report: ImportReport) -> Dataset:
        recipe: JsonObject = {"source": source.name} | spec.model_dump(mode="json")
        name = _dataset_name(source, spec)
        return self.settle(folder, Dataset, name, report.facts(), recipe, replace=spec.replace)

    def preview(self, name: str, model: str | None, max_length: int | None = None) -> Preview:
        """Token lengths, what is cut, and rendered samples of a dataset, as `model` would see it."""
        return self._preview(self.dataset(name).path, model, max_length)

    def _preview(self, folder: Path, model: str | None, max_length: int | None) -> Preview:
        from modelworks.data.preview import preview
        from modelworks.train.plan import LONGEST_ROW, context_length

        if model is None:
            if max_length is not None:
                raise Invalid("max_length counts tokens: name a model, whose tokens they are")
            return preview(folder, None)
        found = self.model(model)
        base = self.base_of(found) if isinstance(found, Adapter) else found
        return preview(folder, base.path, max_length or min(context_length(base), LONGEST_ROW))

    def add_model(self, source: Path, name: str, *, base: str | None = None, replace: bool = False) -> Model | Adapter:
        """Copy a checkpoint or adapter folder into the workspace under `name`. Blocks.

        `base` is what an adapter was trained on, where its folder names a base that is not known here by that name.
        """
        source = self.allowed(source)
        self.check_free("models", name, replace=replace)
        check_folder(source)
        kind, facts = self._inspect(source, base)
        files.check_space(self.settings.home, sum(file.stat().st_size for file in source.rglob("*") if file.is_file()))
        with self.staging() as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            return self.settle(folder, kind, name, facts, {"source": str(source)}, replace=replace)

    def alias(self, name: str, new_name: str) -> AnyArtifact:
        """Let `new_name` mean what `name` means; a name in use is moved."""
        found = self.model(name)
        catalog.point(self.database, found.kind, new_name, found.id)
        return found

    def remove(self, shelf: Shelf, name: str, in_use: Sequence[str]) -> AnyArtifact:
        """Forget an artifact and free its disk space.

        Raises:
            Conflict: a job that goes on uses it (`in_use` holds artifact ids), or an adapter needs it as its base.
        """
        found = self.resolve(shelf, name)
        if found.id in in_use:
            raise Conflict(f"{name} is used by a job that has not ended; cancel it first")
        adapters = (other for other in self.on_shelf("models") if isinstance(other, Adapter))
        needing = [adapter.name for adapter in adapters if adapter.base == found.id]
        if needing:
            raise Conflict(f"{name} is the base of {', '.join(needing)}; remove those first")
        if catalog.remove(self.database, found.id) and found.path.exists():
            files.discard(found.path)
        return found

    def lineage(self, name: str) -> LineageNode:
        """The family tree of a model or dataset, back to what was pulled or uploaded."""
        try:
            found: AnyArtifact = self.model(name)
        except NotFound as no_model:
            try:
                found = self.dataset(name)
            except NotFound:
                raise no_model from None
        return self._node(found, "self")

    def reward_file(self, name: str) -> File:
        """A Python file that the operator named; `name` is an input's.

        Raises:
            NotFound: it is not named, or not there.
        """
        named, own = self.settings.reward_files, name.removeprefix(FILE_PREFIX)
        path = named.get(own)
        if path is None or not path.is_file():
            what = f"{path} is not there" if path else f"no reward {own!r}"
            raise NotFound(f"{what}; there are {', '.join(sorted({*BUILT_IN, *named}))} (setting reward_files)")
        files = (FileEntry(path.name, path.stat().st_size, hash_file(path)),)
        return File(
            id=name, name=name, digest=digest_of(files), path=path.parent, size_bytes=files[0].size_bytes, files=files,
            created_at=clock.now(), filename=path.name, purpose="reward",
        )  # fmt: skip

    def allowed(self, path: Path) -> Path:
        return inside(path, (self.settings.home, *self.settings.allow_paths))

    def check_output(self, folder: str) -> None:
        """Raises Denied unless results may be placed in `folder`: under an allowed root, but not among our own."""
        place = self.allowed(self.settings.home / folder)
        own = [self.settings.home / name for name in (*files.SHELVES.values(), "jobs", "staging", "engines")]
        if place == self.settings.home.resolve() or any(place.is_relative_to(each.resolve()) for each in own):
            raise Denied(f"output_dir {folder!r} belongs to the workspace itself; choose another, e.g. ./results")

    def _folder_named(self, name: str) -> Path | None:
        """The folder a name points to. What lies outside the allowed roots is not looked at, so nobody learns of it."""
        is_path = name.startswith(("/", "./", "../", "~"))
        try:
            folder = self.allowed(Path(name))
            return folder if folder.is_dir() else None
        except Denied:
            if is_path:
                raise
        except (OSError, UnicodeEncodeError):
            # Longer than the file system takes, or no text: no folder has such a name.
            pass
        return None

    def _node(self, artifact: AnyArtifact, role: str) -> LineageNode:
        parents = []
        for parent in artifact.parents:
            found = catalog.get(self.database, self.settings.home, parent.id)
            unregistered = LineageNode(**asdict(parent), job_id=None, recipe=_UNREGISTERED, metrics={}, parents=())
            parents.append(unregistered if found is None else self._node(found, parent.role))
        return LineageNode(
            role=role, kind=artifact.kind, name=artifact.name, id=artifact.id, digest=artifact.digest,
            job_id=artifact.job_id, recipe=artifact.recipe, metrics=artifact.metrics, parents=tuple(parents),
        )  # fmt: skip

    def _look_at(self, folder: Path) -> AnyArtifact:
        """A folder that was never registered, as the artifact it would be."""
        check_folder(folder)
        kind, facts = self._inspect(folder)
        return _described(folder, list_files(folder), kind, str(folder), facts, {"source": str(folder)})

    def _inspect(self, folder: Path, base_name: str | None = None) -> tuple[type[Model | Adapter], JsonObject]:
        if what_is(folder) == "model":
            return Model, inspect_model(folder)
        facts = inspect_adapter(folder)
        told = str(facts.pop("base_name"))
        base = self.resolve("models", base_name or told)
        if not isinstance(base, Model):
            raise Invalid(f"{folder}: its base {base.name} is not a full model")
        return Adapter, facts | {"base": base.id, "base_name": base.name, "base_digest": base.digest}

    def settle(
        self,
        staged: Path,
        kind: type[A],
        name: str,
        facts: Mapping[str, Any],
        recipe: JsonObject,
        *,
        replace: bool = False,
    ) -> A:
        """Publish a staged folder; `facts` are fields of the artifact that its files do not say.

        Raises:
            Conflict: the name is taken and `replace` is not set.
        """
        listed = list_files(staged)
        files.sync_tree(staged)
        place = files.place_of(self.settings.home, kind.kind, digest_of(listed))
        files.settle(staged, place)
        artifact = _described(place, listed, kind, name, facts, recipe)
        publication = catalog.Publication(artifact=artifact, home=self.settings.home, replace=replace)
        made = catalog.add(self.database, publication)
        if not isinstance(made, kind):
            raise TypeError(f"{made.kind}")
        return made

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Have a private folder on the workspace's disk for as long as the block lasts."""
        folder = self.settings.home / "staging" / new_id()
        folder.mkdir(parents=True)
        try:
            with files.told_when_full(self.settings.home):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _dataset_name(source: Path, spec: ImportSpec) -> str:
    return spec.name or source.name.split(".")[0]


def _described(
    folder: Path, listed: tuple[FileEntry, ...], kind: type[A], name: str, facts: Mapping[str, Any], recipe: JsonObject
) -> AnyArtifact:
    body = {
        "id": new_id(), "kind": kind.kind, "name": name, "digest": digest_of(listed), "path": folder, "files": listed,
        "size_bytes": sum(file.size_bytes for file in listed), "recipe": recipe, "created_at": clock.now(),
    }  # fmt: skip
    return catalog.codec().validate_python(body | dict(facts))
