"""A foreign program that cannot outlive us: `python -m modelworks.serve.guard PROGRAM ARGUMENT...`.

Standard input is a pipe that whoever started it holds open and never writes to. When it ends, however that came,
the whole process group is killed: the program, and what it started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Run the program to its end; return its exit status, as a shell has it."""
    # SIGTERM to the group is for the program. A handler, since a program would inherit that a signal is ignored.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"{command[0]} could not be started: {error}\n")
        return 127
    threading.Thread(target=_watch, daemon=True).start()
    status = process.wait()
    return status if status >= 0 else 128 - status


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
