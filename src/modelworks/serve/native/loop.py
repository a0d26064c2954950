"""The engine's one computing thread: takes orders between steps, computes a step, tells what came of it."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import psutil
import torch
from torch import Tensor

from modelworks.core.errors import Invalid, ModelworksError, Unsupported
from modelworks.core.generation import EngineFailed, Failed, Finished, FinishReason
from modelworks.core.nouns import JsonObject
from modelworks.serve.engine import Counts, EngineStats
from modelworks.serve.native import sampler
from modelworks.serve.native.model import LoadedModel
from modelworks.serve.native.scheduler import Piece, Scheduler
from modelworks.serve.native.scoring import score
from modelworks.serve.native.sequence import Sequence as Answer
from modelworks.serve.wire import AddAdapter, AskStats, Cancel, Done, Remade, Remake, RemoveAdapter, Report, SetThreads

logger = logging.getLogger(__name__)

# Tokens computed in a step: long enough to fill the machine, short enough that running answers hardly wait.
TOKENS_PER_STEP = 256
# An engine that nobody asks anything for so long gives back the memory of what it has read.
KEEP_PREFIXES_SECONDS = 300.0

LoopOrder: TypeAlias = Answer | Cancel | AddAdapter | RemoveAdapter | AskStats | SetThreads | Remake
# From a recipe to weights by their names in a checkpoint, and what was found.
Make: TypeAlias = Callable[[JsonObject], tuple[dict[str, Tensor], JsonObject]]


@dataclass
class Loop:
    """`tell` is called with all reports of a step at once, from the computing thread."""

    model: LoadedModel
    tell: Callable[[Sequence[tuple[str, Report]]], None]
    max_sequences: int
    make: Make | None = None
    _orders: queue.SimpleQueue[LoopOrder] = field(default_factory=queue.SimpleQueue)
    _reports: list[tuple[str, Report]] = field(default_factory=list)
    _counts: Counts = field(default_factory=Counts)
    # A Remake, and what came after it: all wait until the answers before it have ended.
    _held: list[LoopOrder] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._runner, self._adapters = self.model.runner, self.model.adapters
        self._scheduler = Scheduler(self.max_sequences, TOKENS_PER_STEP, self._runner.cache.fits)

    def put(self, order: LoopOrder) -> None:
        """Hand over an order, from any thread; it is taken before the next step."""
        self._orders.put(order)

    def run(self) -> None:
        """Compute for ever."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Take all orders there are, waiting for one when there is nothing to compute, then compute one step."""
        if self._scheduler.is_idle and self._orders.empty() and not self._held:
            self._take(self._rest())
        while not self._orders.empty():
            self._take(self._orders.get())
        while self._scheduler.is_idle and self._held:
            self._remake_now()
        pieces = self._scheduler.plan()
        if pieces:
            self._step(pieces)
        if self._reports:
            self.tell(self._reports)
            self._reports = []

    def _rest(self) -> LoopOrder:
        """Wait for an order; what was read is kept for a while, in case the next one begins alike."""
        self._scheduler.rest(self._runner.cache)
        try:
            return self._orders.get(timeout=KEEP_PREFIXES_SECONDS)
        except queue.Empty:
            self._forget()
            return self._orders.get()

    def _forget(self) -> None:
        self._scheduler.forget()
        self._runner.cache.clear()

    def _step(self, pieces: list[Piece]) -> None:
        self._counts.steps += 1
        try:
            self._scheduler.make_ready(self._runner.cache)
            pieces = self._guess(pieces)
            logits = self._runner.forward(pieces)
        except RuntimeError as error:  # torch: out of memory above all; the batch is lost, the engine is not
            logger.exception("a step failed")
            for sequence in self._scheduler.sequences():
                if sequence.slot is not None:
                    self._fail(sequence, EngineFailed(f"step {self._counts.steps} failed: {error}"))
            self._forget()
            return
        giving = [piece for piece in pieces if piece.gives_token]
        for piece in pieces:
            piece.sequence.cached += piece.count
        for sequence in (piece.sequence for piece in giving):
            if sequence.request.echo and sequence.generated == 0:
                text = self.model.tokenizer.decode(sequence.tokens)
                self._reports.append((sequence.id, sequence.echo(text)))
            if sequence.is_read_only:
                self._end_unanswered(sequence)
        rows = [piece.sequence for piece in giving for _ in range(1 + len(piece.guesses))]
        going_on = [row for row, sequence in enumerate(rows) if not sequence.is_read_only]
        if len(going_on) < len(rows):
            rows, logits = [rows[row] for row in going_on], logits[going_on]
        if rows:
            self._answer([piece for piece in giving if not piece.sequence.is_read_only], rows, logits)

    def _guess(self, pieces: list[Piece]) -> list[Piece]:
        """With what an answer may say next behind its piece, if it is alone; several fill a step by themselves."""
        piece, sequence = pieces[0], pieces[0].sequence
        alone = len(pieces) == 1 and piece.count == 1 and piece.start > 0
        if not (alone and self._runner.speculates and sequence.speculates):
            return pieces
        room = min(self._runner.cache.length, sequence.max_length - 1) - len(sequence.tokens)
        return [replace(piece, guesses=sequence.lookup.guess(sequence.tokens, room))]

    def _answer(self, pieces: list[Piece], rows: list[Answer], logits: Tensor) -> None:
        draws = [piece.sequence.draws.getstate() if piece.guesses else None for piece in pieces]
        tokens = sampler.sample(logits, rows)
        self._score(rows, tokens, logits)
        found = iter(tokens)
        for piece, before in zip(pieces, draws, strict=True):
            said = [next(found) for _ in range(1 + len(piece.guesses))]
            taken = self._accept_all(piece, said)
            if before is not None:
                piece.sequence.lookup.learn(len(piece.guesses), taken - 1)
                # One draw a token: the next ones are those of the guesses that came to nothing.
                piece.sequence.draws.setstate(before)
                for _ in range(taken):
                    piece.sequence.draws.random()

    def _accept_all(self, piece: Piece, said: Sequence[int | None]) -> int:
        """Take what a sequence says, as far as what it was computed behind was said as well; return how much."""
        sequence = piece.sequence
        self._accept(sequence, said[0])
        taken = 1
        for guess in piece.guesses:
            if sequence.finished or guess != said[taken - 1]:
                break
            sequence.cached += 1
            self._accept(sequence, said[taken])
            taken += 1
        return taken

    def _score(self, sequences: list[Answer], tokens: list[int | None], logits: Tensor) -> None:
        ends = self.model.ends  # which are no part of the answer
        wanted = {
            row: (sequence, token, sequence.request.logprobs)
            for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True))
            if sequence.request.logprobs is not None and token is not None and token not in ends
        }
        if wanted:
            most = max(count or 0 for _, _, count in wanted.values())
            found = score(logits[list(wanted)], [chosen or 0 for _, chosen, _ in wanted.values()], most)
            for (sequence, chosen, count), (own, top) in zip(wanted.values(), found, strict=True):
                sequence.scores.append((chosen or 0, own, top[:count]))

    def _accept(self, sequence: Answer, token: int | None) -> None:
        if token is None:
            message = f"the model's output is not a number at token {sequence.generated + 1}; its weights are damaged"
            self._fail(sequence, EngineFailed(message))
            return
        self._counts.generated_tokens += 1
        try:
            text = sequence.accept(token, self.model.ends)
        except Invalid as error:
            self._fail(sequence, error)
            return
        self._reports += [(sequence.id, each) for each in sequence.tell(text)]
        if sequence.finished:
            self._counts.finished += 1
            self._end(sequence, _finished(sequence, sequence.finished))

    def _end_unanswered(self, sequence: Answer) -> None:
        self._counts.finished += 1
        if sequence.request.embed:
            self._reports.append((sequence.id, sequence.embedding()))
        self._end(sequence, _finished(sequence, "stop" if sequence.request.embed else "length"))

    def _fail(self, sequence: Answer, error: ModelworksError) -> None:
        self._counts.failed += 1
        self._end(sequence, Failed(error.code, error.message), sound=False)

    def _end(self, sequence: Answer, report: Report, *, sound: bool = True) -> None:
        self._scheduler.remove(sequence, sound=sound)
        self._reports.append((sequence.id, report))

    def _remake_now(self) -> None:
        first, *waiting = self._held
        self._held = []
        if isinstance(first, Remake):
            self._remake(first)
        for order in waiting:
            self._take(order)

    def _remake(self, order: Remake) -> None:
        """The old weights are let go when the new ones are whole, so nothing that fails can hurt."""
        try:
            if self.make is None:
                raise Unsupported(f"the engine of {self.model.name} serves a checkpoint; it makes none from a recipe")
            tensors, told = self.make(order.recipe)
            self._runner.change_weights(tensors)
            self._forget()
        except ModelworksError as error:
            self._reports.append((order.id, Failed(error.code, error.message)))
        except RuntimeError as error:  # torch: out of memory above all
            logger.exception("other weights could not be made")
            message = f"the new weights could not be made, the old ones stay: {error}"
            self._reports.append((order.id, Failed(EngineFailed.code, message)))
        else:
            self._reports.append((order.id, Remade(told)))

    def _take(self, order: LoopOrder) -> None:
        if isinstance(order, Remake) or (self._held and not isinstance(order, Cancel | AskStats | SetThreads)):
            self._held.append(order)
            return
        match order:
            case Answer():
                self._counts.requests += 1
                self._counts.prompt_tokens += order.prompt_tokens
                if order.adapter is not None and order.adapter not in self._adapters.names:
                    self._fail(order, EngineFailed("its adapter was taken out of the engine; ask again"))
                else:
                    self._scheduler.add(order)
            case Cancel():
                held = [waiting for waiting in self._held if isinstance(waiting, Answer)]
                for sequence in (*self._scheduler.sequences(), *held):
                    if sequence.id == order.id:
                        self._counts.aborted += 1
                        self._end(sequence, _finished(sequence, "abort"))
                        self._held = [waiting for waiting in self._held if waiting is not sequence]
            case AddAdapter() | RemoveAdapter():
                self._change_adapters(order)
            case AskStats():
                self._reports.append((order.id, self._stats()))
            case SetThreads(count):
                torch.set_num_threads(count)  # this thread is the one that computes

    def _change_adapters(self, order: AddAdapter | RemoveAdapter) -> None:
        try:
            if isinstance(order, AddAdapter):
                self._adapters.add(order.name, Path(order.folder))
            else:
                for sequence in self._scheduler.sequences():
                    if sequence.adapter == order.name:
                        self._fail(sequence, EngineFailed("its adapter was taken out of the engine"))
                self._scheduler.forget(order.name)
                self._adapters.remove(order.name)
        except ModelworksError as error:
            self._reports.append((order.id, Failed(error.code, error.message)))
        else:
            self._reports.append((order.id, Done()))

    def _stats(self) -> EngineStats:
        cache, counts = self._runner.cache, self._counts
        return EngineStats(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting + sum(isinstance(held, Answer) for held in self._held),
            adapters=self._adapters.names,
            max_context=self.model.max_context,
            kv_used_tokens=cache.used_tokens,
            kv_total_tokens=cache.total_tokens,
            rss_bytes=psutil.Process().memory_info().rss,
            dtype=self.model.dtype,
            requests=counts.requests,
            finished=counts.finished,
            aborted=counts.aborted,
            failed=counts.failed,
            preempted=self._scheduler.preempted,
            generated_tokens=counts.generated_tokens,
            prompt_tokens=counts.prompt_tokens,
            steps=counts.steps,
            cached_tokens=self._scheduler.reused_tokens,
        )


def _finished(sequence: Answer, reason: FinishReason) -> Finished:
    return Finished(reason, sequence.prompt_tokens, sequence.generated, sequence.reused)
