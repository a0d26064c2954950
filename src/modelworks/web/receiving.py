"""Large bodies, straight to the disk: a file as the whole body, or as one part of a form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedWriter
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from modelworks.app.uploads import Inbox
from modelworks.core.errors import Invalid, TooLarge
from modelworks.core.nouns import JsonObject

PIECE_BYTES = 1 << 20
# The free space is looked at again after so many bytes: others write too.
SPACE_CHECK_BYTES = 64 << 20
FIELD_BYTES = 64 << 10
FIELDS = 32
# A form that `receive_form` takes.
FILE = {"type": "string", "format": "binary"}
FORM_SCHEMA: dict[str, Any] = {"type": "object", "required": ["file"], "properties": {"file": FILE}}


def body_of(content: dict[str, Any]) -> dict[str, Any]:
    """The body of a route that reads it itself, for its description: by content type, what there is to send."""
    return {"requestBody": {"required": True, "content": content}}


def read_object(content: bytes, remedy: str) -> JsonObject:
    """Read a small body; raises Invalid, with what to do, where it is no object of JSON."""
    try:
        body = from_json(content)
    except ValueError as error:
        raise Invalid(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Invalid(f"the body is not an object; {remedy}")
    return body


async def receive_file(request: Request, inbox: Inbox, label: str) -> None:
    """Write the body of `request` to the inbox's place for `label`."""
    with inbox.place_for(label).open("wb") as file:
        await _pour(request, inbox, file.write)


async def receive_form(request: Request, inbox: Inbox) -> Form:
    """Write the file of a multipart form to the inbox and return what the form says.

    Raises:
        Invalid: it is no such form, or has no file.
        TooLarge: a field that is no file is large.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or boundary is None:
        raise Invalid("send the file as multipart/form-data (curl -F file=@rows.jsonl), or with PUT as the whole body")
    form = Form(inbox)
    callbacks: Any = {name: getattr(form, name) for name in vars(Form) if name.startswith("on_")}
    parser = MultipartParser(boundary, callbacks)
    try:
        await _pour(request, inbox, parser.write)
        parser.finalize()
    except FormParserError as error:
        raise Invalid(f"the form cannot be read: {error}") from None
    finally:
        form.close()
    if form.label is None:
        raise Invalid("the form has no file; name its field `file`")
    return form


@dataclass
class Form:
    """A multipart form while it comes in: one file, which goes to the disk, and small fields."""

    inbox: Inbox
    fields: dict[str, str] = field(default_factory=dict)
    # The file's name as its sender calls it; None until there is a file.
    label: str | None = None
    _header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))
    _disposition: bytes = b""
    _name: str = ""
    _value: bytearray = field(default_factory=bytearray)
    _file: BufferedWriter | None = None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        if bytes(self._header[0]).lower() == b"content-disposition":
            self._disposition = bytes(self._header[1])
        self._header = (bytearray(), bytearray())

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._value = bytearray()
        if b"filename" not in options:
            return
        if self.label is not None:
            raise Invalid("the form has more than one file; send one at a time")
        self.label = options[b"filename"].decode(errors="replace")
        self._file = self.inbox.place_for(self.label).open("wb")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > FIELD_BYTES or len(self.fields) >= FIELDS:
            raise TooLarge(f"a form may have {FIELDS} fields of {FIELD_BYTES >> 10} KiB besides its file")

    def on_part_end(self) -> None:
        if self._file is None:
            self.fields[self._name] = self._value.decode(errors="replace")
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


async def _pour(request: Request, inbox: Inbox, write: Callable[[bytes], int]) -> None:
    """Hand the body to `write` in large pieces, off the event loop, while there is room for it."""
    declared = request.headers.get("content-length", "")
    inbox.check_space(int(declared) if declared.isdecimal() else 0)
    piece, unchecked = bytearray(), 0
    async for chunk in request.stream():
        piece += chunk
        if len(piece) >= PIECE_BYTES:
            unchecked += len(piece)
            if unchecked >= SPACE_CHECK_BYTES:
                inbox.check_space(0)
                unchecked = 0
            await run_in_threadpool(write, bytes(piece))
            piece.clear()
    await run_in_threadpool(write, bytes(piece))
