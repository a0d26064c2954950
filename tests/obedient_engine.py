"""An engine process without a model: `-m obedient_engine FD SPEC` begins every answer, and ends none."""

from __future__ import annotations

import socket
import sys
import time

from modelworks.core.generation import Started
from modelworks.serve import wire
from modelworks.serve.engine import EngineStats

STATS = EngineStats(
    running=1, waiting=0, adapters=(), max_context=9, kv_used_tokens=0, kv_total_tokens=0, rss_bytes=0, dtype="",
    requests=1, finished=0, aborted=0, failed=0, preempted=0, generated_tokens=0, prompt_tokens=0, steps=0,
)  # fmt: skip


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))

    def tell(id_: str, report: wire.Report) -> None:
        channel.sendall(wire.write_reports([(id_, report)]))

    tell("", wire.Ready())
    for line in channel.makefile("rb"):
        match wire.read_order(line):
            case wire.Generate(request):
                tell(request.id, Started(1))
            case wire.AskStats(id_):
                tell(id_, STATS)
            case wire.Remake(id_, {"seconds": float(seconds)}):
                time.sleep(seconds)
                tell(id_, wire.Remade({}))
            case wire.RemoveAdapter(id_):  # in pieces, of which one ends with its line's end
                first, second = (wire.write_reports([(each, wire.Done())]) for each in ("nobody's", id_))
                for piece in (first[:9], first[9:], second[:9], second[9:-1], second[-1:]):
                    channel.sendall(piece)
                    time.sleep(0.01)
            case wire.AddAdapter():
                channel.sendall(b"I like adapters\n")


if __name__ == "__main__":
    main()
