"""A file or folder of rows becomes a dataset folder: converted, empty rows dropped, split in two, all of it counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import orjson

from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import Dataset, JsonObject
from modelworks.core.registry import choose, nearest
from modelworks.data.folder import SIDES
from modelworks.data.format import BadRow, Format, formats, kind_of
from modelworks.data.reading import RawRow, read_rows
from modelworks.data.record import Prompted, Record, Split, split_path, to_line
from modelworks.data.spec import ImportSpec

SAMPLE_ROWS = 100
# An error tells the first of what a report keeps.
SHOWN_PROBLEMS, KEPT_PROBLEMS = 5, 20
MAX_BAD_SHARE = 0.05
SHOWN_COLUMNS = 20


class SchemaMismatch(Invalid):
    """The columns of a file are not those of the format, or of any."""

    code = "dataset_schema_mismatch"


class BadRows(Invalid):
    """Too many rows of a file cannot be read."""

    code = "dataset_bad_rows"


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What became of the rows.

    Each one is in train, validation, empty or bad, duplicates as well unless they are to be dropped. A leaked row is a
    duplicate that lies on the other side.
    """

    format: str
    columns: tuple[str, ...]
    rows_read: int
    train_rows: int
    validation_rows: int
    duplicate_rows: int
    empty_rows: int
    bad_rows: int
    leaked_rows: int
    # the first ones
    problems: tuple[Problem, ...]
    # what was guessed, left out, or should be looked at
    notes: tuple[str, ...]

    @property
    def rows(self) -> int:
        return self.train_rows + self.validation_rows

    def facts(self) -> JsonObject:
        """The fields that Dataset adds to Artifact."""
        return {key: value for key, value in asdict(self).items() if key in Dataset.__dataclass_fields__}


def import_file(source: Path, folder: Path, spec: ImportSpec) -> ImportReport:
    """Write train.jsonl, validation.jsonl and dataset.json into `folder`, an existing empty one.

    Memory grows by a digest for each distinct row (about 0.1 KB), not by the rows themselves.

    Raises:
        NotFound: no such file or format.
        Invalid: the format is not found by looking, or too many rows are bad: with the first problems.
    """
    notes: list[str] = []
    rows = read_rows(source, notes)
    sample = list(islice(rows, SAMPLE_ROWS))
    if not sample:
        raise Invalid(f"{source} holds no rows")
    columns = _columns(sample)
    if not columns:
        shown = tuple(Problem(row.where, row.problem or _not_object(row.value)) for row in sample[:SHOWN_PROBLEMS])
        raise BadRows(f"{source} holds no objects; {shown[0]}", problems=shown)
    chosen = _choose_format(source, columns, sample, spec)
    has_split = _has_split(sample, spec)
    with split_path(folder, "train").open("wb") as train, split_path(folder, "validation").open("wb") as validation:
        intake = _Intake(chosen, spec, has_split, {"train": train, "validation": validation})
        for row in chain(sample, rows):
            intake.take(row)
    _refuse_bad(source, intake)
    _fill_empty_side(folder, intake)
    report = intake.report(columns, (*notes, *_notes(columns, intake)))
    body = {**asdict(report), "problems": [str(p) for p in report.problems]}
    body |= {"validation_share": spec.validation_share, "seed": spec.seed}
    (folder / "dataset.json").write_bytes(orjson.dumps(body, option=orjson.OPT_INDENT_2))
    return report


@dataclass
class _Intake:
    """Takes rows one by one and remembers what must be known at the end."""

    format: Format
    spec: ImportSpec
    has_split: bool
    files: Mapping[Split, BinaryIO]
    rows: dict[Split, int] = field(default_factory=lambda: {"train": 0, "validation": 0})
    read: int = 0
    duplicate: int = 0
    empty: int = 0
    bad: int = 0
    leaked: int = 0
    problems: list[Problem] = field(default_factory=list)
    # the side on which each distinct row was seen first
    seen: dict[bytes, Split] = field(default_factory=dict)
    # by side, the row that lies nearest to the other: its place in [0, 1) and its line
    nearest: dict[Split, tuple[float, bytes]] = field(default_factory=dict)
    distinct: int = 0

    def take(self, raw: RawRow) -> None:
        self.read += 1
        try:
            row = _row(raw, self.spec)
            record = self.format.convert(row)
            if record is None:
                self.empty += 1
                return
            line = _line(record)
            named = raw.side or self._named_side(row)
        except BadRow as bad:
            self.bad += 1
            if len(self.problems) < KEPT_PROBLEMS:
                where = f"{raw.where}, column {bad.column}" if bad.column else raw.where
                self.problems.append(Problem(where, bad.what, bad.remedy))
            return
        side, place = self._side(line, named)
        first = self.seen.setdefault(blake2b(line, digest_size=16).digest(), side)
        # The number of distinct rows has not grown: this one was there before.
        is_duplicate = len(self.seen) == self.distinct
        self.distinct = len(self.seen)
        self.duplicate += is_duplicate
        self.leaked += is_duplicate and side != first
        if not (is_duplicate and self.spec.drop_duplicates):
            self._write(line, side, place)

    def _named_side(self, row: Mapping[str, object]) -> Split | None:
        value = row.get("split") if self.has_split else None
        if value is None or value == "":
            return None
        side = SIDES.get(value.strip().lower()) if isinstance(value, str) else None
        if side is None:
            raise BadRow("split", f"{str(value)[:40]!r} is no split", "use train, validation or test")
        return side

    def _side(self, line: bytes, named: Split | None) -> tuple[Split, float]:
        # By content, so that a row stays on its side wherever it stands and whatever else the file holds.
        key = self.spec.seed.to_bytes(8, "big")
        place = int.from_bytes(blake2b(line, digest_size=8, key=key).digest(), "big") / 2**64
        return named or ("validation" if place < self.spec.validation_share else "train"), place

    def _write(self, line: bytes, side: Split, place: float) -> None:
        self.files[side].write(line + b"\n")
        self.rows[side] += 1
        candidate = (place, line)
        pick = min if side == "train" else max
        self.nearest[side] = pick(self.nearest.get(side, candidate), candidate)

    def report(self, columns: tuple[str, ...], notes: tuple[str, ...]) -> ImportReport:
        return ImportReport(
            format=self.format.name, columns=columns, rows_read=self.read, train_rows=self.rows["train"],
            validation_rows=self.rows["validation"], duplicate_rows=self.duplicate, empty_rows=self.empty,
            bad_rows=self.bad, leaked_rows=self.leaked, problems=tuple(self.problems), notes=notes,
        )  # fmt: skip


def _columns(sample: Iterable[RawRow]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in sample if isinstance(row.value, dict) for name in row.value))


def _choose_format(source: Path, columns: tuple[str, ...], sample: Sequence[RawRow], spec: ImportSpec) -> Format:
    known = formats()
    for target, column in spec.columns.items():
        if column not in columns:
            raise Invalid(
                f"columns: {target} is to come from {column!r}; {source} has no such column; {nearest(column, columns)}"
            )
    names = set(_rename(dict.fromkeys(columns), spec.columns))
    seen = ", ".join(sorted(names)[:SHOWN_COLUMNS]) + (" ..." if len(names) > SHOWN_COLUMNS else "")
    chosen: Format | None
    if spec.format == "auto":
        readable = {
            form: _readable(form, sample, spec) for form in known.values() if form.rank >= 0 and not form.lacks(names)
        }
        # Half as many as the best: a few bad rows must not turn an instruction with its answer into plain text.
        fitting = [form for form, count in readable.items() if 2 * count >= max(readable.values())]
        chosen = max(fitting, key=lambda form: form.rank, default=None)
        if chosen is None:
            tried = "; ".join(f"{form.name} needs {', '.join(form.needs)}" for form in known.values())
            raise SchemaMismatch(
                f"{source} has the columns {seen}, which fit no format ({tried}); "
                "say where they are, e.g. columns: {instruction: question, output: answer}"
            )
    else:
        chosen = choose(known, spec.format, "format")
        if lacking := ", ".join(chosen.lacks(names)):
            raise SchemaMismatch(f"{source} lacks {lacking} for {chosen.name}; it has {seen}: map columns")
    used = (*chosen.columns, "split")
    for target in spec.columns:
        if target not in used:
            raise Invalid(f"columns: {chosen.name} has no column {target!r}; {nearest(target, used)}")
    return chosen


def _readable(form: Format, sample: Sequence[RawRow], spec: ImportSpec) -> int:
    """How many rows of the sample the format can read."""
    count = 0
    for raw in sample:
        with suppress(BadRow):
            count += form.convert(_row(raw, spec)) is not None
    return count


def _row(raw: RawRow, spec: ImportSpec) -> dict[str, object]:
    if raw.problem or not isinstance(raw.value, dict):
        raise BadRow("", raw.problem or _not_object(raw.value))
    return _rename(raw.value, spec.columns) if spec.columns else raw.value


def _rename(row: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, object]:
    """Give columns the names the format knows; what was mapped away is no longer there under its own name."""
    moved = set(columns.values())
    renamed = {name: value for name, value in row.items() if name not in moved}
    return renamed | {target: row[column] for target, column in columns.items() if column in row}


def _has_split(sample: Iterable[RawRow], spec: ImportSpec) -> bool:
    """Whether a column says on which side each row belongs."""
    rows = [_rename(row.value, spec.columns) for row in sample if isinstance(row.value, dict)]
    values = {value for row in rows if isinstance(value := row.get("split"), str) and value}
    return bool(values) and all(value.strip().lower() in SIDES for value in values)


def _refuse_bad(source: Path, intake: _Intake) -> None:
    good = sum(intake.rows.values())
    problems = tuple(intake.problems)
    if good == 0 and not intake.bad:
        raise BadRows(f"all {intake.empty} rows of {source} are empty")
    too_many = intake.spec.on_bad_rows == "fail" and intake.bad > MAX_BAD_SHARE * intake.read
    if good == 0 or too_many:
        raise BadRows(
            f"{intake.bad} of {intake.read} rows of {source} cannot be read as {intake.format.name}, first: "
            f"{problems[0]}; mend them" + ("" if good == 0 else ", or import with on_bad_rows: skip"),
            problems=problems[:SHOWN_PROBLEMS],
        )


def _fill_empty_side(folder: Path, intake: _Intake) -> None:
    """Move the nearest row to a side left empty: by chance in a small file, or by one that names no held-out rows."""
    if intake.spec.validation_share == 0 or intake.distinct < 2:
        return
    sides: tuple[tuple[Split, Split], ...] = (("train", "validation"), ("validation", "train"))
    for full, empty in sides:
        if intake.rows[empty] == 0:
            moved = intake.nearest[full][1] + b"\n"
            path, rest = split_path(folder, full), folder / "rest.tmp"
            with path.open("rb") as lines, rest.open("wb") as kept:
                copies = intake.rows[full] - sum(1 for line in lines if line != moved and kept.write(line))
            rest.replace(path)
            split_path(folder, empty).write_bytes(moved * copies)
            intake.rows[full] -= copies
            intake.rows[empty] += copies
            return


def _notes(columns: tuple[str, ...], intake: _Intake) -> Iterator[str]:
    # A Prompted keeps every column for its judge.
    used = (
        {*columns}
        if intake.format.makes is Prompted
        else {*intake.format.columns, *intake.spec.columns.values(), "split"}
    )
    if unused := [column for column in columns if column not in used]:
        shown = ", ".join(unused[:SHOWN_COLUMNS]) + (" ..." if len(unused) > SHOWN_COLUMNS else "")
        yield f"not used: the columns {shown}"
    if intake.duplicate:
        done = "left out" if intake.spec.drop_duplicates else "kept (drop_duplicates leaves them out)"
        yield f"rows that repeat an earlier one: {intake.duplicate}, {done}"
    if intake.leaked:
        done = "left out" if intake.spec.drop_duplicates else "kept: what is measured on them is too good"
        yield f"rows of one side, train or validation, that stand on the other: {intake.leaked}, {done}"
    if intake.bad:
        yield f"rows left out because they cannot be read: {intake.bad}, first: {intake.problems[0]}"


def _line(record: Record) -> bytes:
    try:
        return to_line(record)
    except TypeError:  # half a surrogate pair, which JSON can escape and UTF-8 cannot hold
        raise BadRow("", "holds text that is not Unicode (a lone surrogate)", "write the character whole") from None


def _not_object(value: object) -> str:
    return f"is {kind_of(value)}; every row must be an object"
