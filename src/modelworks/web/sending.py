"""A folder sent as one file."""

from __future__ import annotations

from fastapi.responses import StreamingResponse

from modelworks.app.archive import Archive


def attached(archive: Archive) -> StreamingResponse:
    """An uncompressed tar that is made while it is sent."""
    headers = {
        "Content-Disposition": f'attachment; filename="{archive.file_name}"',
        "Content-Length": str(archive.size_bytes),
    }
    return StreamingResponse(iter(archive), media_type="application/x-tar", headers=headers)
