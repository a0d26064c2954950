"""What the gateway measures of every answer, in Prometheus' types; names as vLLM has them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram

from modelworks.core.caller import Caller
from modelworks.core.generation import EngineEvent, Finished, Started, Token

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
_BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
_WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_RATE_SECONDS = 10.0


@dataclass(slots=True)
class Rate:
    """Events a second, those of the last ten seconds above all."""

    _sum: float = 0.0
    _at: float = field(default_factory=time.monotonic)

    def add(self, count: int) -> None:
        self._sum, self._at = self.now * _RATE_SECONDS + count, time.monotonic()

    @property
    def now(self) -> float:
        return self._sum * math.exp((self._at - time.monotonic()) / _RATE_SECONDS) / _RATE_SECONDS


class Metrics:
    """The instruments of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"modelworks_{name}", text, ["model_name"], buckets=buckets, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"modelworks_{name}", text, ["model_name", *labels], registry=self.registry)

        self.requests = counter("requests", "Requests for text, by how they ended.", "outcome")
        self.prompt_tokens = counter("prompt_tokens", "Tokens read.")
        self.generation_tokens = counter("generation_tokens", "Tokens written.")
        self.first = histogram("time_to_first_token_seconds", "From the request to its first text.", _FIRST_TOKEN)
        self.between = histogram("inter_token_latency_seconds", "From one token to the next.", _BETWEEN_TOKENS)
        self.whole = histogram("e2e_request_latency_seconds", "From the request to its end.", _WHOLE)

    def begin(self, model: str, caller: Caller) -> Watch:
        return Watch(self, model, caller)


@dataclass
class Watch:
    """One answer, watched from the request to its end. `outcome` is told by the end: its reason, or an error's code."""

    metrics: Metrics
    model: str
    caller: Caller
    rate: Rate = field(default_factory=Rate)
    outcome: str = "cancelled"
    _begun: float = field(default_factory=time.monotonic)
    _last: float = 0.0

    def __post_init__(self) -> None:
        self.caller.model = self.model
        self._between = self.metrics.between.labels(self.model)
        self._tokens = self.metrics.generation_tokens.labels(self.model)

    def see(self, event: EngineEvent) -> None:
        if isinstance(event, Started):
            self.caller.prompt_tokens += event.prompt_tokens
            self.metrics.prompt_tokens.labels(self.model).inc(event.prompt_tokens)
        elif isinstance(event, Token) and event.tokens:
            now = time.monotonic()
            if self._last:
                self._between.observe((now - self._last) / event.tokens)
            else:
                self.metrics.first.labels(self.model).observe(now - self._begun)
                self.caller.first_token_ms = self.caller.first_token_ms or round(1000 * (now - self._begun), 1)
            self._last = now
            self.caller.output_tokens += event.tokens
            self._tokens.inc(event.tokens)
            self.rate.add(event.tokens)
        elif isinstance(event, Finished):
            self.outcome = event.reason

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def end(self) -> None:
        """Note that it is over."""
        self.metrics.requests.labels(self.model, self.outcome).inc()
        if self._last:
            self.metrics.whole.labels(self.model).observe(self.seconds)
