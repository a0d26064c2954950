from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

import modelworks.store.database as module
from modelworks.store.database import FIXED_SQLITE, open_database, sqlite_module
from modelworks.store.tables import HEAD, metadata


def test_the_sqlite_in_use_is_free_of_the_wal_reset_bug() -> None:
    assert sqlite_module().sqlite_version_info >= FIXED_SQLITE


def test_migrations_make_exactly_the_tables_of_the_code(tmp_path: Path) -> None:
    migrated = open_database(f"sqlite:///{tmp_path / 'migrated.db'}").engine
    created = create_engine(f"sqlite:///{tmp_path / 'created.db'}", module=sqlite_module())
    metadata.create_all(created)

    for table in metadata.tables:
        columns = [
            {(column["name"], str(column["type"]), column["nullable"]) for column in inspect(engine).get_columns(table)}
            for engine in (migrated, created)
        ]
        assert columns[0] == columns[1]
    migrated.dispose()
    created.dispose()


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
    url = f"sqlite:///{tmp_path / 'old.db'}"
    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    engine = create_engine(url, module=sqlite_module())
    row = "(:id, 'model', :id, 'd', 'p', 1, '[]', '{}', '{}', '{}', 1)"
    columns = "(id, kind, name, digest, path, size_bytes, files, recipe, metrics, facts, created_at)"
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for artifact_id in ("b", "a", "c"):
            connection.execute(text(f"INSERT INTO artifacts {columns} VALUES {row}"), {"id": artifact_id})
    engine.dispose()

    migrated = open_database(url)

    with migrated.read() as connection:
        numbers = connection.execute(text("SELECT id, number FROM artifacts ORDER BY number")).all()
    migrated.close()
    assert [tuple(row) for row in numbers] == [("a", 1), ("b", 2), ("c", 3)]
