"""One database, opened once: SQLite in the workspace by default, PostgreSQL by URL."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, make_url, select, text
from sqlalchemy.exc import OperationalError

from modelworks.core.errors import Unavailable
from modelworks.store.tables import HEAD, metadata, versions

# The first SQLite without the WAL-reset bug, which can corrupt a database that several connections write to.
FIXED_SQLITE = (3, 51, 3)
BUSY_SECONDS = 30
ADVISORY_KEY = 0x6D6F64656C776B73


class Database:
    """Transactions. `write` takes the write lock first, so what a verb reads stays true until it commits."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writing = engine.execution_options(modelworks_write=True)
        self._watched: Any = None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with _translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with _translated(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """Write while nobody else is in `alone`: for what is true only of many rows together, such as free slots."""
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_KEY})
            yield connection

    def version(self) -> object:
        """What is another whenever anybody has written; None where the database does not tell. For one thread only."""
        if self.engine.dialect.name != "sqlite":
            return None
        if self._watched is None:
            self._watched = self.engine.raw_connection()
        return self._watched.cursor().execute("PRAGMA data_version").fetchone()[0]

    def close(self) -> None:
        if self._watched is not None:
            self._watched.close()
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Open `url`, creating it or bringing it to the newest schema."""
    if make_url(url).get_backend_name() == "sqlite":
        engine = create_engine(url, module=sqlite_module(), connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(url, pool_pre_ping=True)
    with _translated():
        _migrate(engine)
    return Database(engine)


def sqlite_module() -> ModuleType:
    """The SQLite we ship where it is installed, else Python's own; `modelworks doctor` says which."""
    name = "pysqlite3.dbapi2" if importlib.util.find_spec("pysqlite3") else "sqlite3"
    return importlib.import_module(name)


def _prepare_sqlite(connection: Any, _record: object) -> None:  # a DB-API connection, which has no type
    # None hands transactions to us: _begin_sqlite says when one starts and of which kind.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_SECONDS * 1000}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("modelworks_write", False)
    # SQLite has no SKIP LOCKED: taking the write lock first is what makes a claim atomic.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(engine: Engine) -> None:
    with engine.connect() as connection:
        if inspect(connection).has_table(versions.name) and connection.execute(select(versions)).scalar() == HEAD:
            return
    with engine.execution_options(modelworks_write=True).begin() as connection:
        if inspect(connection).has_table(versions.name):
            _upgrade(connection)
        else:
            metadata.create_all(connection)
            connection.execute(insert(versions).values(version_num=HEAD))


def _upgrade(connection: Connection) -> None:
    # Only now: importing alembic costs more than everything else that opening does.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        if "locked" in str(error.orig) or "busy" in str(error.orig):
            raise Unavailable(f"the database was locked for {BUSY_SECONDS} s; try again") from error
        raise
