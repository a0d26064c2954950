"""Events: a job's story, appended only, numbered from 1 without a gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, RowMapping, func, insert, select, update

from modelworks.core import clock
from modelworks.core.nouns import Event, EventType, JsonObject
from modelworks.store.database import Database
from modelworks.store.tables import events, jobs

PAGE = 1000


@dataclass(frozen=True, slots=True)
class NewEvent:
    at: datetime
    type: EventType
    body: JsonObject


def append(connection: Connection, job_id: str, new: Sequence[NewEvent]) -> int:
    """Number and store `new` inside the caller's transaction; return the last number."""
    row = select(jobs.c.last_seq).where(jobs.c.id == job_id).with_for_update()
    last = int(connection.execute(row).scalar_one())
    if new:
        rows = [
            {"job_id": job_id, "seq": last + number, "at": event.at, "type": event.type.value, "body": event.body}
            for number, event in enumerate(new, start=1)
        ]
        connection.execute(insert(events), rows)
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(last_seq=last + len(new)))
    return last + len(new)


def tell(connection: Connection, job_id: str, type_: EventType, body: JsonObject) -> None:
    """Append one event of this moment, inside the caller's transaction."""
    append(connection, job_id, [NewEvent(clock.now(), type_, body)])


def take_over(database: Database, job_id: str, new: Sequence[NewEvent], *, start: int, end: int) -> bool:
    """Store what stands at bytes `start` to `end` of the job's events.jsonl, once, whoever asks how often."""
    with database.write() as connection:
        moved = connection.execute(
            update(jobs).where(jobs.c.id == job_id, jobs.c.events_offset == start).values(events_offset=end)
        )
        if moved.rowcount != 1:
            return False
        append(connection, job_id, new)
        return True


def read(database: Database, job_id: str, after: int = 0, limit: int = PAGE) -> list[Event]:
    """Return up to `limit` events with numbers above `after`, in order."""
    query = select(events).where(events.c.job_id == job_id, events.c.seq > after).order_by(events.c.seq).limit(limit)
    with database.read() as connection:
        rows = connection.execute(query).mappings().all()
    return [_event(row) for row in rows]


def newest(
    database: Database, job_id: str, types: Sequence[EventType], limit: int, before: int | None = None
) -> list[Event]:
    """Return the last `limit` events of some types, or of those numbered below `before`, in order."""
    chosen = select(events).where(events.c.job_id == job_id, events.c.type.in_([type_.value for type_ in types]))
    if before is not None:
        chosen = chosen.where(events.c.seq < before)
    query = chosen.order_by(events.c.seq.desc()).limit(limit)
    with database.read() as connection:
        rows = connection.execute(query).mappings().all()
    return [_event(row) for row in reversed(rows)]


def sample(database: Database, job_id: str, type_: EventType, most: int) -> list[Event]:
    """Return about `most` events of one type, spread evenly over the job's story, or all where there are fewer."""
    chosen = (events.c.job_id == job_id, events.c.type == type_.value)
    with database.read() as connection:
        count = connection.execute(select(func.count()).where(*chosen)).scalar_one()
        place = func.row_number().over(order_by=events.c.seq).label("place")
        numbered = select(events, place).where(*chosen).subquery()
        query = select(numbered).where(numbered.c.place % max(1, count // most) == 0).order_by(numbered.c.seq)
        return [_event(row) for row in connection.execute(query).mappings()]


def last_of_type(database: Database, job_id: str, type_: EventType) -> Event | None:
    """Return the newest event of one type, e.g. the latest progress."""
    return next(iter(newest(database, job_id, (type_,), 1)), None)


def _event(row: RowMapping) -> Event:
    return Event(job_id=row["job_id"], seq=row["seq"], at=row["at"], type=EventType(row["type"]), body=row["body"])
