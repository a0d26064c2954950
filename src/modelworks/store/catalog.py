"""Queries on artifacts: datasets, models and adapters, their names and their parents."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter
from sqlalchemy import Connection, RowMapping, Select, delete, func, insert, select, text, update

from modelworks.core import clock
from modelworks.core.errors import Conflict
from modelworks.core.ids import check_name
from modelworks.core.nouns import AnyArtifact, ArtifactKind, JsonObject, Parent
from modelworks.store.database import Database
from modelworks.store.tables import artifacts, names, parents


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A folder that lies in its place and is to become an artifact. `replace` lets it take over a name in use."""

    artifact: AnyArtifact
    home: Path
    replace: bool = False


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A name that an artifact is to have besides its own. `replace` as in Publication."""

    name: str
    artifact: AnyArtifact
    replace: bool = False


def publish(connection: Connection, publication: Publication) -> AnyArtifact:
    """Record an artifact in the caller's transaction, with parents and name; return it with final name and number."""
    artifact = publication.artifact
    name = _free_name(connection, artifact.kind, artifact.name, replace=publication.replace)
    if connection.dialect.name == "postgresql":
        # Two that publish at once must not find the same highest number; SQLite has one writer anyway.
        connection.execute(text("LOCK TABLE artifacts IN SHARE ROW EXCLUSIVE MODE"))
    number = 1 + (connection.execute(select(func.max(artifacts.c.number))).scalar() or 0)
    place = artifact.path.relative_to(publication.home).as_posix()
    own = asdict(artifact) | {"kind": artifact.kind.value, "name": name, "number": number, "path": place}
    del own["parents"]
    known = {key: own.pop(key) for key in artifacts.columns.keys() & own.keys()}
    connection.execute(insert(artifacts).values(**known, facts=own))
    for position, parent in enumerate(artifact.parents):
        connection.execute(
            insert(parents).values(
                child_id=artifact.id, position=position, role=parent.role, kind=parent.kind.value,
                parent_id=parent.id, name=parent.name, digest=parent.digest,
            )
        )  # fmt: skip
    _point(connection, artifact.kind, name, artifact.id)
    return from_json(to_json(artifact) | {"name": name, "number": number})


def add(database: Database, publication: Publication) -> AnyArtifact:
    """Record an artifact that no job made; return it with its number.

    Raises:
        Conflict: the name is taken by another artifact and `replace` is not set.
    """
    artifact = publication.artifact
    with database.write() as connection:
        taken = _pointed(connection, shelf_of(artifact.kind), artifact.name)
        if taken is not None and not publication.replace:
            raise Conflict(f"{artifact.name} exists already ({taken}); choose another name or say --replace")
        return publish(connection, publication)


def find(database: Database, home: Path, shelf: str, name_or_id: str) -> AnyArtifact | None:
    """Return what a name, an alias or an id means now."""
    # No name of ours holds anything else, and half a character would be an error of the database.
    if not name_or_id.isascii():
        return None
    with database.read() as connection:
        pointed = _pointed(connection, shelf, name_or_id) or name_or_id
        query = select(artifacts).where(artifacts.c.id == pointed, artifacts.c.removed_at.is_(None))
        found = next(iter(_artifacts(connection, home, query)), None)
    return found if found is not None and shelf_of(found.kind) == shelf else None


def numbered(database: Database, home: Path, shelf: str, number: int) -> AnyArtifact | None:
    """Return what bears a number, unless it was removed."""
    with database.read() as connection:
        query = select(artifacts.c.id).where(artifacts.c.number == number)
        artifact_id = connection.execute(query).scalar()
    return find(database, home, shelf, artifact_id) if artifact_id else None


def get(database: Database, home: Path, artifact_id: str) -> AnyArtifact | None:
    """Return an artifact by id, removed or not: lineage names those too."""
    with database.read() as connection:
        return next(iter(_artifacts(connection, home, select(artifacts).where(artifacts.c.id == artifact_id))), None)


def list_artifacts(database: Database, home: Path, shelf: str) -> list[AnyArtifact]:
    """Newest first; only those that a name points to."""
    kinds = [kind for kind in ArtifactKind if shelf_of(kind) == shelf]
    query = select(artifacts).where(artifacts.c.kind.in_(kinds), artifacts.c.removed_at.is_(None))
    with database.read() as connection:
        return _artifacts(connection, home, query.order_by(artifacts.c.id.desc()))


def list_names(database: Database, shelf: str) -> dict[str, str]:
    """Every name and alias on a shelf, with the id it points to."""
    with database.read() as connection:
        rows = connection.execute(select(names.c.name, names.c.artifact_id).where(names.c.shelf == shelf))
        return {row.name: row.artifact_id for row in rows}


def point(database: Database, kind: ArtifactKind, name: str, artifact_id: str) -> None:
    """Make `name` mean `artifact_id`, whatever it meant before."""
    with database.write() as connection:
        _point(connection, kind, check_name(name), artifact_id)


def take_name(connection: Connection, alias: Alias) -> str:
    """Give the alias in the caller's transaction; return the name that it came to be."""
    name = _free_name(connection, alias.artifact.kind, alias.name, replace=alias.replace)
    _point(connection, alias.artifact.kind, name, alias.artifact.id)
    return name


def remove(database: Database, artifact_id: str) -> bool:
    """Take an artifact out of sight; return whether its files are used by no other artifact."""
    with database.write() as connection:
        connection.execute(delete(names).where(names.c.artifact_id == artifact_id))
        connection.execute(update(artifacts).where(artifacts.c.id == artifact_id).values(removed_at=clock.now()))
        path = select(artifacts.c.path).where(artifacts.c.id == artifact_id).scalar_subquery()
        others = select(artifacts.c.id).where(artifacts.c.path == path, artifacts.c.removed_at.is_(None))
        return connection.execute(others).first() is None


def has_made(database: Database, job_id: str, purpose: str) -> bool:
    """Whether a job ever had a file for a purpose, removed or not."""
    query = select(artifacts.c.id).where(
        artifacts.c.job_id == job_id, artifacts.c.facts["purpose"].as_string() == purpose
    )
    with database.read() as connection:
        return connection.execute(query).first() is not None


def made_by(database: Database, home: Path, job_id: str) -> list[AnyArtifact]:
    """What a job published and is still there, in order."""
    query = select(artifacts).where(artifacts.c.job_id == job_id, artifacts.c.removed_at.is_(None))
    with database.read() as connection:
        return _artifacts(connection, home, query.order_by(artifacts.c.number))


def paths_in_use(database: Database) -> set[str]:
    """The folders, relative to the workspace, that some artifact lies in."""
    with database.read() as connection:
        return set(connection.execute(select(artifacts.c.path).where(artifacts.c.removed_at.is_(None))).scalars())


def shelf_of(kind: ArtifactKind) -> str:
    return {ArtifactKind.DATASET: "datasets", ArtifactKind.FILE: "files"}.get(kind, "models")


@cache
def codec() -> TypeAdapter[AnyArtifact]:
    """Artifacts to and from JSON."""
    return TypeAdapter(AnyArtifact)


def to_json(artifact: AnyArtifact) -> JsonObject:
    dumped: JsonObject = codec().dump_python(artifact, mode="json")
    return dumped


def from_json(body: JsonObject) -> AnyArtifact:
    return codec().validate_python(body)


def _pointed(connection: Connection, shelf: str, name: str) -> str | None:
    query = select(names.c.artifact_id).where(names.c.shelf == shelf, names.c.name == name)
    return connection.execute(query).scalar()


def _point(connection: Connection, kind: ArtifactKind, name: str, artifact_id: str) -> None:
    shelf = shelf_of(kind)
    connection.execute(delete(names).where(names.c.shelf == shelf, names.c.name == name))
    connection.execute(insert(names).values(shelf=shelf, name=name, artifact_id=artifact_id))


def _free_name(connection: Connection, kind: ArtifactKind, wanted: str, *, replace: bool) -> str:
    """The name asked for; when another job took it meanwhile, the same with a number, so that nothing is lost."""
    name, number = wanted, 2
    while not replace and _pointed(connection, shelf_of(kind), name) is not None:
        name, number = f"{wanted}-{number}", number + 1
    return name


def _artifacts(connection: Connection, home: Path, query: Select[tuple[object, ...]]) -> list[AnyArtifact]:
    rows = connection.execute(query).mappings().all()
    return [_artifact(row, home, _parents_of(connection, row["id"])) for row in rows]


def _parents_of(connection: Connection, child_id: str) -> tuple[Parent, ...]:
    query = select(parents).where(parents.c.child_id == child_id).order_by(parents.c.position)
    return tuple(
        Parent(row.role, ArtifactKind(row.kind), row.parent_id, row.name, row.digest)
        for row in connection.execute(query)
    )


def _artifact(row: RowMapping, home: Path, its_parents: tuple[Parent, ...]) -> AnyArtifact:
    keys = ("id", "kind", "number", "name", "digest", "size_bytes", "files", "job_id", "recipe", "metrics")
    body = {key: row[key] for key in (*keys, "created_at")} | row["facts"]
    return codec().validate_python(body | {"path": home / row["path"], "parents": its_parents})
