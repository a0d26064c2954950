"""What becomes of every block of the documents: who runs it, or why nobody does."""

from __future__ import annotations

from contract.surfaces.blocks import Block, blocks

# Run by test_clients.py, as printed.
PYTHON = ("S0-15", "S1-16", "S2-13", "S4-11", "S4-18")
CURL = ("S0-03", "S0-05", "S0-08", "S0-10", "S0-12", "S0-13", "S0-14", "S2-12", "S4-13")
JAVASCRIPT = ("S0-16", "S1-15", "S4-12")
BOT = ("S4-16",)
# Run by test_page.py.
PAGES = ("S4-15",)
# Run by test_launchers.py.
COMMANDS = ("S0-02", "S2-02", "S3-01", "S4-02", "S4-03", "S4-14")
# Sent by test_samples.py as printed: bodies, and lines of HTTP.
REQUESTS = ("S0-07", "S1-03", "S1-12", "S2-04", "S4-06", "S4-08")
REQUEST_LINES = ("S2-03", "S2-06", "S2-08", "S2-09", "S2-10", "S2-11")
# Compared by test_samples.py with what the server answers: the same keys, of the same types.
RESPONSES = (
    "S0-04", "S0-06", "S0-09", "S0-11",
    "S1-01", "S1-02", "S1-04", "S1-05", "S1-06", "S1-07", "S1-08", "S1-09", "S1-10", "S1-11", "S1-13", "S1-14",
    "S2-05", "S2-07", "S2-15",
    "S4-04", "S4-05", "S4-07", "S4-09", "S4-10",
)  # fmt: skip
# Files the documents name: those a server makes are looked for by test_samples.py, the one it reads is read there.
FILES = ("S2-14", "S3-02")
# Nothing a server of ours could answer.
TOLD = {
    "S0-01": "installs the original program",
    "S0-17": "installs and starts gunicorn with the original program; the guide says what to start instead",
    "S0-18": "an image of the original program; its command is that of S0-02",
    "S0-19": "looks at the log file for ever",
    "S2-01": "installs the original program",
    "S4-01": "trains by the original's scripts, which are not part of its API",
    "S4-17": "a change to the original's source",
    "S4-19": "as S0-17",
}
RUN = (*PYTHON, *CURL, *JAVASCRIPT, *BOT, *PAGES, *COMMANDS, *REQUESTS, *REQUEST_LINES, *RESPONSES, *FILES)


def taken(ids: tuple[str, ...]) -> list[Block]:
    return [blocks()[id_] for id_ in ids]
