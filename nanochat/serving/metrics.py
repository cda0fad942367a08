"""Counters of the server: numbers for `GET /stats`, and for Prometheus at `GET /metrics`.

Nothing here depends on what was written in a conversation; a route is counted under its own name, never under a path
that a client made up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

LoopStats = Mapping[str, float]

# Names in the statistics of the generation loops that only grow; the others are states.
TOTALS = ("steps", "generated_tokens", "prefilled_tokens", "shared_tokens", "preemptions", "finished_requests")


class ServerStats:
    """Counters of the server, updated by several threads. `loop_stats` returns those of each generation loop."""

    def __init__(self, loop_stats: Callable[[], list[LoopStats]]) -> None:
        self._loop_stats = loop_stats
        self._lock = threading.Lock()
        # refused: by any rule or limit; stopped: replies whose connection was closed
        self._counts = dict.fromkeys(("requests", "refused", "answered", "stopped", "failed", "tokens"), 0)
        self._num_busy = 0
        self._busy_since = 0.0
        self._busy_seconds = 0.0
        registry = self._registry = CollectorRegistry()
        self._http_requests = Counter(
            "nanochat_http_requests", "Requests, by route and status", ["route", "status"], registry=registry
        )
        self._first_token = Histogram(
            "nanochat_first_token_seconds",
            "Time from the arrival of a request to its first token",
            buckets=FIRST_TOKEN_SECONDS,
            registry=registry,
        )
        self._token = Histogram(
            "nanochat_token_seconds", "Time between two tokens of a reply", buckets=TOKEN_SECONDS, registry=registry
        )
        registry.register(_LoopCollector(self))

    def add(self, **amounts: int) -> None:
        """Add to the named counters."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount

    def count_request(self, route: str, status: int) -> None:
        """Count a request that was answered, under the name of its route."""
        self._http_requests.labels(route, str(status)).inc()

    def begin(self) -> None:
        """Note that a reply has been given to a generation loop."""
        with self._lock:
            if not self._num_busy:
                self._busy_since = time.monotonic()
            self._num_busy += 1

    def end(self) -> None:
        """Note that a reply has ended."""
        with self._lock:
            self._num_busy -= 1
            if not self._num_busy:
                self._busy_seconds += time.monotonic() - self._busy_since

    def observe_first_token(self, seconds: float) -> None:
        """Note the time from a request to its first token."""
        self._first_token.observe(seconds)

    def observe_token(self, seconds: float) -> None:
        """Note the time from a token to the next one of its reply."""
        self._token.observe(seconds)

    def loop_totals(self) -> dict[str, float]:
        """Return the sums of the loops' statistics."""
        totals: dict[str, float] = {}
        for stats in self._loop_stats():
            for name, value in stats.items():
                if isinstance(value, (int, float)):
                    totals[name] = totals.get(name, 0) + value
        return totals

    def snapshot(self) -> dict[str, float]:
        """Return all counters, those of the loops, and the tokens per second while at least one reply is generated.

        `waiting` and `in_flight`: completions in the queues and in the rows of the loops, now.
        """
        totals = self.loop_totals()
        with self._lock:
            counts = dict(self._counts)
            seconds = self._busy_seconds + (time.monotonic() - self._busy_since if self._num_busy else 0.0)
        speed = counts["tokens"] / seconds if seconds else 0.0
        waiting, running = totals.pop("waiting", 0), totals.pop("running", 0)
        return {**counts, "waiting": waiting, "in_flight": running, "tokens_per_second": round(speed, 1), **totals}

    def prometheus(self) -> bytes:
        """Return everything in Prometheus' text format."""
        text: bytes = generate_latest(self._registry)
        return text


class _LoopCollector(Collector):
    """The counters of `ServerStats.snapshot` as metrics of Prometheus, computed when they are asked for."""

    def __init__(self, stats: ServerStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        snapshot = self._stats.snapshot()
        replies = CounterMetricFamily("nanochat_replies", "Replies, by how they ended", labels=["outcome"])
        for outcome in ("answered", "stopped", "failed", "refused"):
            replies.add_metric([outcome], snapshot.pop(outcome))
        yield replies
        for name in ("requests", "tokens"):
            yield CounterMetricFamily(f"nanochat_reply_{name}", f"{name.capitalize()} of replies", snapshot.pop(name))
        snapshot.pop("tokens_per_second")
        for name, value in sorted(snapshot.items()):
            family = CounterMetricFamily if name in TOTALS else GaugeMetricFamily
            yield family(f"nanochat_loop_{name}", f"{name.replace('_', ' ').capitalize()}, all loops together", value)
