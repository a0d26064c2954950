"""The process of a user's own entry: `python -m modelworks.serve.entry_process FD SPEC`; all user code runs in here.

The user's code has the main thread, as it would have in a program of its own. A second thread reads orders, so that
they are taken, and questions answered, while an inference runs. The process ends when its socket does.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from modelworks.core.errors import Invalid, ModelworksError, NotFound, Unsupported
from modelworks.core.generation import EngineFailed, Failed, Finished, GenerateRequest, Started, Token
from modelworks.serve import wire
from modelworks.serve.engine import Counts, EngineSpec, EngineStats
from modelworks.serve.entries import Entry, class_of, read_entries, shorten, words

logger = logging.getLogger(__name__)

# Requests that come at once, or follow the answers of one batch, arrive within this time: worth one inference.
GATHER_SECONDS = 0.01
# After its socket ended, an inference and `deactivate` have so long before the process ends without them.
GRACE_SECONDS = 4.0
_LONGEST_ERROR = 500
# Fields of a request that an entry is given, or that are done for it.
_TAKEN = ("messages", "prompt", "max_tokens", "temperature", "stop")


@dataclass
class Process:
    """Gathers requests of one temperature, has the entry answer them in one inference, and tells each caller."""

    spec: EngineSpec
    channel: socket.socket
    _waiting: list[GenerateRequest] = field(default_factory=list)
    _over: bool = False
    _news: threading.Condition = field(default_factory=threading.Condition)
    _counts: Counts = field(default_factory=Counts)
    _running: int = 0

    def __post_init__(self) -> None:
        self._teller = wire.Teller(self.channel)

    def run(self) -> None:
        """Load the entry and serve until the socket ends."""
        try:
            self._entry = self._find()
            # From here on, so that a gateway that dies while this loads takes it along.
            threading.Thread(target=self._read, name="read", daemon=True).start()
            model = self._load()
        except ModelworksError as error:
            self._tell("", Failed(error.code, error.message))
            return
        self._tell("", wire.Ready())
        while batch := self._gather():
            self._answer(model, batch)
        model.deactivate()

    def _find(self) -> Entry:
        # Read again, so that what was mended in config.json holds for the next process.
        entries = read_entries(Path(self.spec.model_folder), self.spec.max_sequences)
        if self.spec.model_name not in entries:
            raise NotFound(f"{self.spec.model_folder}: config.json no longer has {self.spec.model_name!r}")
        return entries[self.spec.model_name]

    def _load(self) -> Any:
        """The user's object, active on its device."""
        os.chdir(self._entry.folder)
        sys.path.insert(0, str(self._entry.folder))
        device, params = self.spec.device, self._entry.params
        doing = "importing its package `models`"
        try:
            kind = class_of(self._entry, importlib.import_module("models"))
            doing = f"{kind.__name__}(...)"
            model = kind(*params) if isinstance(params, list) else kind(**params)
            doing = f"{kind.__name__}.activate({device!r})"
            model.activate(device)
        except ModelworksError:
            raise
        except (Exception, SystemExit) as error:  # the user's own code: it will not go better the next time
            logger.exception("%s failed", doing)
            raise Invalid(f"{self._entry.name}: {doing} raised {_told(error)}") from None
        return model

    def _read(self) -> None:
        try:
            with self.channel.makefile("rb") as lines, suppress(OSError):
                for line in lines:
                    self._take(wire.read_order(line))
        finally:
            with self._news:
                self._over = True
                self._news.notify()
            time.sleep(GRACE_SECONDS)
            os._exit(0)

    def _take(self, order: wire.Order) -> None:
        match order:
            case wire.Generate(request):
                self._counts.requests += 1
                beyond = request.beyond(_TAKEN) or ("token ids",) * isinstance(request.prompt, tuple)
                if beyond:
                    what = f"{self._entry.name} is an entry of its own: it takes temperature, not {', '.join(beyond)}"
                    self._fail(request, Unsupported(what))
                    return
                self._tell(request.id, Started(_prompt_words(request)))
                with self._news:
                    self._waiting.append(request)
                    self._news.notify()
            case wire.Cancel(id_):  # the answer of one that is being computed has no reader any more
                self._counts.aborted += 1
                with self._news:
                    self._waiting = [request for request in self._waiting if request.id != id_]
            case wire.AskStats(id_):
                self._tell(id_, self._stats())
            case wire.SetThreads():  # how its user's code computes is its own affair
                pass
            case wire.AddAdapter(id_) | wire.RemoveAdapter(id_) | wire.Remake(id_):
                what = f"{self._entry.name} is an entry of its own, without adapters and recipes"
                self._tell(id_, Failed(Unsupported.code, what))

    def _gather(self) -> list[GenerateRequest]:
        """What is answered next; waits for it. Nothing is left when the socket has ended."""
        with self._news:
            self._running = 0
            while not self._over:
                self._news.wait_for(lambda: self._waiting or self._over)
                self._news.wait_for(lambda: self._over or len(self._next()) == self._entry.batch_size, GATHER_SECONDS)
                if batch := self._next():
                    self._waiting = [request for request in self._waiting if request not in batch]
                    self._running = len(batch)
                    return batch
            return []

    def _next(self) -> list[GenerateRequest]:
        """The oldest request, and those with its temperature, at most a batch."""
        fitting = [request for request in self._waiting if request.temperature == self._waiting[0].temperature]
        return fitting[: self._entry.batch_size]

    def _answer(self, model: Any, batch: list[GenerateRequest]) -> None:
        self._counts.steps += 1
        called = f"{self._entry.class_name}.inference"
        try:
            answers = list(model.inference([_conversation(request) for request in batch], batch[0].temperature))
            if len(answers) != len(batch):
                raise EngineFailed(f"{called} gave {len(answers)} answers to {len(batch)} conversations")
        except EngineFailed as error:
            answers = [error] * len(batch)
        except Exception as error:  # the user's own code; the process is sound and goes on
            logger.exception("%s raised", called)
            answers = [EngineFailed(f"{called} raised {_told(error)}")] * len(batch)
        for request, answer in zip(batch, answers, strict=True):
            if isinstance(answer, str):
                self._finish(request, answer)
            elif isinstance(answer, EngineFailed):
                self._fail(request, answer)
            else:
                self._fail(request, EngineFailed(f"{called} gave {type(answer).__name__} for an answer, not a text"))

    def _finish(self, request: GenerateRequest, answer: str) -> None:
        text, cut = shorten(answer, request.stop, request.max_tokens)
        asked, told = _prompt_words(request), words(text)
        self._counts.finished += 1
        self._counts.prompt_tokens += asked
        self._counts.generated_tokens += told
        self._tell(request.id, Token(text, told))
        self._tell(request.id, Finished("length" if cut else "stop", asked, told))

    def _fail(self, request: GenerateRequest, error: ModelworksError) -> None:
        self._counts.failed += 1
        self._tell(request.id, Failed(error.code, error.message))

    def _stats(self) -> EngineStats:
        return EngineStats(
            waiting=len(self._waiting), adapters=(), max_context=0, kv_used_tokens=0, kv_total_tokens=0,
            rss_bytes=psutil.Process().memory_info().rss, dtype="", preempted=0, running=self._running,
            **vars(self._counts),
        )  # fmt: skip

    def _tell(self, id_: str, report: wire.Report) -> None:
        self._teller.tell([(id_, report)])


def _conversation(request: GenerateRequest) -> list[dict[str, str]]:
    """What an entry is given: a bare prompt is one message of the user."""
    if request.messages is None:
        return [{"role": "user", "content": str(request.prompt or "")}]
    return [{"role": message.role, "content": message.content} for message in request.messages]


def _prompt_words(request: GenerateRequest) -> int:
    return sum(words(message["content"]) for message in _conversation(request))


def _told(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST_ERROR else text[:_LONGEST_ERROR] + "..."


def main(descriptor: int, spec: EngineSpec) -> None:
    """Serve one entry over the socket `descriptor`."""
    channel = socket.socket(fileno=descriptor)
    # A program that the user's code starts must not keep the socket open.
    channel.set_inheritable(False)
    with channel:
        Process(spec, channel).run()


if __name__ == "__main__":
    faulthandler.enable(all_threads=False)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    main(int(sys.argv[1]), EngineSpec(**json.loads(sys.argv[2])))
