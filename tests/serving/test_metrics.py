"""Counters: what is added up, and Prometheus' text read by its own parser."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nanochat.serving.metrics import ServerStats


def samples(stats: ServerStats) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(stats.prometheus().decode("utf-8"))
        for sample in family.samples
    }


def test_counters_of_all_loops_are_added() -> None:
    stats = ServerStats(
        lambda: [
            {"running": 2, "waiting": 1, "steps": 5, "blocks_free": 7, "dtype": "bf16"},  # type: ignore[dict-item]
            {"running": 1, "waiting": 0, "steps": 6, "blocks_free": 8},
        ]
    )
    stats.add(requests=3, refused=1, tokens=4)
    snapshot = stats.snapshot()
    assert (snapshot["in_flight"], snapshot["waiting"], snapshot["steps"], snapshot["blocks_free"]) == (3, 1, 11, 15)
    assert (snapshot["requests"], snapshot["refused"], snapshot["tokens"]) == (3, 1, 4)
    found = samples(stats)
    assert found["nanochat_loop_in_flight", ()] == 3
    assert found["nanochat_loop_steps_total", ()] == 11
    assert found["nanochat_loop_blocks_free", ()] == 15
    assert found["nanochat_replies_total", ("refused",)] == 1


def test_requests_and_times() -> None:
    stats = ServerStats(list)
    stats.count_request("GET /health", 200)
    stats.count_request("GET /health", 200)
    stats.count_request("POST other", 404)
    stats.observe_first_token(0.03)
    for _ in range(3):
        stats.observe_token(0.002)
    found = samples(stats)
    assert found["nanochat_http_requests_total", ("GET /health", "200")] == 2
    assert found["nanochat_http_requests_total", ("POST other", "404")] == 1
    assert found["nanochat_first_token_seconds_bucket", ("0.025",)] == 0
    assert found["nanochat_first_token_seconds_bucket", ("0.05",)] == 1
    assert found["nanochat_token_seconds_count", ()] == 3


def test_the_speed_counts_the_time_in_which_replies_are_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("nanochat.serving.metrics.time.monotonic", lambda: now)
    stats = ServerStats(list)
    assert stats.snapshot()["tokens_per_second"] == 0
    stats.begin()
    now = 101.0
    stats.begin()  # at the same time: the second is counted once
    now = 102.0
    stats.end()
    stats.add(tokens=40)
    assert stats.snapshot()["tokens_per_second"] == 20
    now = 104.0
    stats.end()
    now = 1000.0
    assert stats.snapshot()["tokens_per_second"] == 10
