"""The process of OpenVINO GenAI: `python -m modelworks.serve.openvino_process FD SPEC`, one thread that does it all.

A step holds Python's lock from beginning to end: a thread that reads beside it gets its turn some steps later.
Its prompts and texts are made here, from the model's own tokenizer and template. Adapters are refused: two in one batch
were both answered by the first.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import select
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from modelworks.core.errors import Invalid, ModelworksError, Unsupported
from modelworks.core.generation import EngineFailed, Failed, Finished, GenerateRequest, Started, Token
from modelworks.serve import wire
from modelworks.serve.engine import Counts, EngineSpec, EngineStats
from modelworks.serve.native.detokenize import Detokenizer
from modelworks.serve.prompt import Prompts

logger = logging.getLogger(__name__)

_TAKEN = (
    "messages", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "ignore_eos",
)  # fmt: skip
_GIGABYTE = 1024**3
# Of the memory free after the weights are in.
_CACHE_SHARE = 0.4
_MOST_CACHE = 8
_PIECE = 1 << 20


@dataclass
class Answer:
    """One that is being made: its handle in the pipeline, and its text so far."""

    request: GenerateRequest
    prompt_tokens: int
    handle: Any
    text: Detokenizer
    tokens: int = 0


@dataclass
class Process:
    """Takes the orders that have come, makes a step, tells what came of it."""

    spec: EngineSpec
    channel: socket.socket
    _answers: dict[str, Answer] = field(default_factory=dict)
    _counts: Counts = field(default_factory=Counts)
    _lines: wire.Lines = field(default_factory=wire.Lines)
    _number: int = 0

    def __post_init__(self) -> None:
        self._teller = wire.Teller(self.channel)

    def run(self) -> None:
        """Load the model and serve until the socket ends."""
        try:
            self._load()
        except ModelworksError as error:
            self._tell(("", Failed(error.code, error.message)))
            return
        except Exception as error:  # whatever OpenVINO does not like in a file; it will not go better the next time
            logger.exception("the model could not be loaded")
            self._tell(("", Failed(Unsupported.code, f"OpenVINO cannot open {self.spec.model_name}: {error}")))
            return
        self._tell(("", wire.Ready()))
        while True:
            self._read()
            self._counts.steps += 1
            self._pipeline.step()
            self._collect()

    def _load(self) -> None:
        if self.spec.program:
            sys.path.append(self.spec.program)
        self._numpy, self._openvino, self._genai = map(importlib.import_module, ("numpy", "openvino", "openvino_genai"))
        self._prompts = Prompts.load(Path(self.spec.model_folder), self.spec.model_name, self.spec.max_context)
        scheduling = self._genai.SchedulerConfig()
        free = int(psutil.virtual_memory().available * _CACHE_SHARE) // _GIGABYTE
        asked = -(-self.spec.kv_cache_bytes // _GIGABYTE) if self.spec.kv_cache_bytes else free
        scheduling.cache_size = max(1, min(asked, _MOST_CACHE))
        scheduling.max_num_seqs = self.spec.max_sequences
        scheduling.max_num_batched_tokens = 512
        scheduling.dynamic_split_fuse = scheduling.enable_prefix_caching = True
        wishes: dict[str, Any] = {"INFERENCE_NUM_THREADS": self.spec.threads} if self.spec.threads else {}
        if self.spec.dtype:
            names = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
            if self.spec.dtype not in names:
                raise Invalid(f"{self.spec.dtype!r} is not a precision; use {', '.join(names)}")
            wishes["INFERENCE_PRECISION_HINT"] = names[self.spec.dtype]
        self._pipeline = self._genai.ContinuousBatchingPipeline(self.spec.weights_file, scheduling, "CPU", wishes)

    def _read(self) -> None:
        """Take all orders that have come, and with nothing to do the next one."""
        # one that was cancelled is let go by a step
        while select.select([self.channel], [], [], 0 if self._pipeline.has_non_finished_requests() else None)[0]:
            try:
                piece = self.channel.recv(_PIECE)
            except ConnectionError:
                piece = b""
            if not piece:  # the gateway is gone
                os._exit(0)
            for line in self._lines.ended_by(piece):
                self._take(wire.read_order(line))

    def _take(self, order: wire.Order) -> None:
        match order:
            case wire.Generate(request):
                self._counts.requests += 1
                try:
                    self._begin(request)
                except ModelworksError as error:
                    self._counts.failed += 1
                    self._tell((request.id, Failed(error.code, error.message)))
                except RuntimeError as error:  # what OpenVINO thinks of the numbers
                    self._counts.failed += 1
                    self._tell((request.id, Failed(Invalid.code, f"OpenVINO refuses this request: {error}")))
            case wire.Cancel(id_):
                if answer := self._answers.pop(id_, None):
                    self._counts.aborted += 1
                    answer.handle.cancel()
            case wire.AskStats(id_):
                self._tell((id_, self._stats()))
            case wire.AddAdapter(id_):
                what = "the engine openvino serves no adapters; merge it into the model, or use the engine native"
                self._tell((id_, Failed(Unsupported.code, what)))
            case wire.RemoveAdapter(id_):
                self._tell((id_, wire.Done()))
            case wire.Remake(id_):
                self._tell((id_, Failed(Unsupported.code, "the engine openvino makes no weights from a recipe")))

    def _begin(self, request: GenerateRequest) -> None:
        if beyond := request.beyond(_TAKEN):
            raise Unsupported(f"the engine openvino has no {', '.join(beyond)}; leave it out, or use native")
        prompt = self._prompts.read(request)
        self._tell((request.id, Started(len(prompt))))
        text = Detokenizer(self._prompts.tokenizer.decode, request.stop)
        tensor = self._openvino.Tensor(self._numpy.array([prompt], dtype="int64"))
        self._number += 1
        handle = self._pipeline.add_request(self._number, tensor, self._sampling(request, len(prompt)))
        self._answers[request.id] = Answer(request, len(prompt), handle, text)

    def _sampling(self, request: GenerateRequest, prompt: int) -> Any:
        config = self._genai.GenerationConfig()
        most = self._prompts.max_context - prompt
        config.max_new_tokens = most if request.max_tokens is None else request.max_tokens
        config.ignore_eos = request.ignore_eos or not self._prompts.ends
        # Told no end, it asks a tokenizer, and the folder has none.
        config.stop_token_ids = set(self._prompts.ends or {0})
        config.eos_token_id = min(config.stop_token_ids)
        config.do_sample = request.temperature > 0
        if config.do_sample:
            config.temperature, config.top_p, config.min_p = request.temperature, request.top_p, request.min_p
            if request.top_k:
                config.top_k = request.top_k
            if request.seed is not None:
                config.rng_seed = request.seed
        config.repetition_penalty = request.repetition_penalty
        config.presence_penalty, config.frequency_penalty = request.presence_penalty, request.frequency_penalty
        return config

    def _collect(self) -> None:
        """Tell what the last step gave each answer, all at once: the gateway wakes up for each time it is told."""
        told: list[tuple[str, wire.Report]] = []
        for id_, answer in list(self._answers.items()):
            said, count, reason = self._tokens_of(answer)
            if count:
                told.append((id_, Token(said, count)))
            if answer.text.stopped:
                answer.handle.stop()
                reason = "stop"
            elif not reason and answer.handle.get_status() == self._genai.GenerationStatus.IGNORED:
                del self._answers[id_]
                self._counts.failed += 1
                what = "no room for this request in OpenVINO's cache"
                told.append((id_, Failed(EngineFailed.code, what)))
            if reason:
                del self._answers[id_]
                self._counts.finished += 1
                self._counts.prompt_tokens += answer.prompt_tokens
                if rest := answer.text.close():
                    told.append((id_, Token(rest, 0)))
                end = Finished("length" if reason == "length" else "stop", answer.prompt_tokens, answer.tokens)
                told.append((id_, end))
        self._tell(*told)

    def _tokens_of(self, answer: Answer) -> tuple[str, int, str]:
        """Read what is there: its text, how many tokens, and why it ended, if it has."""
        reasons = self._genai.GenerationFinishReason
        reason, said, count = "", "", 0
        while answer.handle.can_read() and not reason and not answer.text.stopped:
            for output in answer.handle.read().values():
                for token in output.generated_ids:
                    count += 1
                    if int(token) not in self._prompts.ends:
                        said += answer.text.add(int(token))
                reason = {reasons.STOP: "stop", reasons.LENGTH: "length"}.get(output.finish_reason, reason)
        answer.tokens += count
        self._counts.generated_tokens += count
        return said, count, reason

    def _stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._answers), waiting=0, adapters=(),
            max_context=self._prompts.max_context, kv_used_tokens=0, kv_total_tokens=0,
            rss_bytes=psutil.Process().memory_info().rss, dtype=self.spec.dtype or "", preempted=0,
            **vars(self._counts),
        )  # fmt: skip

    def _tell(self, *reports: tuple[str, wire.Report]) -> None:
        self._teller.tell(reports)


def main(descriptor: int, spec: EngineSpec) -> None:
    """Serve one model over the socket `descriptor`."""
    with socket.socket(fileno=descriptor) as channel:
        Process(spec, channel).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    main(int(sys.argv[1]), EngineSpec(**json.loads(sys.argv[2])))
