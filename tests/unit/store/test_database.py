from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

import modelworks.store.database as module
from modelworks.store.database import FIXED_SQLITE, open_database, sqlite_module
from modelworks.store.tables import HEAD, metadata


def test_the_sqlite_in_use_is_free_of_the_wal_reset_bug() -> None:
    assert sqlite_module().sqlite_version_info >= FIXED_SQLITE


def an_old_workspace(folder: Path) -> str:
    """The URL of a database as the first version made it, with artifacts in it."""
    url = f"sqlite:///{folder / 'old.db'}"
    engine = create_engine(url, module=sqlite_module())
    row = "(:id, 'model', :id, 'd', 'p', 1, '[]', '{}', '{}', '{}', 1)"
    columns = "(id, kind, name, digest, path, size_bytes, files, recipe, metrics, facts, created_at)"
    with engine.begin() as connection:
        for statement in (Path(__file__).parent / "first_tables.sql").read_text().split(";\n")[:-1]:
            connection.execute(text(statement))
        for artifact_id in ("b", "a", "c"):
            connection.execute(text(f"INSERT INTO artifacts {columns} VALUES {row}"), {"id": artifact_id})
    engine.dispose()
    return url


def test_an_older_workspace_comes_to_exactly_the_tables_of_a_new_one(tmp_path: Path) -> None:
    migrated = open_database(an_old_workspace(tmp_path)).engine
    created = open_database(f"sqlite:///{tmp_path / 'new.db'}").engine

    for table in metadata.tables:
        found = [
            (
                {(each["name"], str(each["type"]), each["nullable"]) for each in inspect(engine).get_columns(table)},
                {each["name"] for each in inspect(engine).get_indexes(table)},
            )
            for engine in (migrated, created)
        ]
        assert found[0] == found[1]
    migrated.dispose()
    created.dispose()


def test_a_new_workspace_is_known_to_be_the_newest(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'new.db'}")

    with database.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [HEAD]
    database.close()


def test_the_head_in_the_code_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))

    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_it_is_opened_durable_and_with_one_writer(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'a.db'}")

    with database.read() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    database.close()


def test_artifacts_of_an_older_workspace_are_numbered_in_the_order_of_their_making(tmp_path: Path) -> None:
    migrated = open_database(an_old_workspace(tmp_path))

    with migrated.read() as connection:
        numbers = connection.execute(text("SELECT id, number FROM artifacts ORDER BY number")).all()
    migrated.close()
    assert [tuple(row) for row in numbers] == [("a", 1), ("b", 2), ("c", 3)]


def test_the_version_is_another_once_somebody_has_written(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    ours, theirs = open_database(url), open_database(url)
    try:
        versions = [ours.version()]
        for database in (ours, theirs):
            with database.read() as connection:
                connection.execute(text("SELECT * FROM jobs"))
            versions.append(ours.version())
            with database.write() as connection:
                connection.execute(text("CREATE TABLE a (b)" if database is ours else "DROP TABLE a"))
            versions.append(ours.version())
    finally:
        ours.close()
        theirs.close()

    first, after_read, second, after_their_read, third = versions
    assert first == after_read != second == after_their_read != third
