"""Fuzz a running server by its own description: no request may give a status 5xx, hang, or contradict /openapi.json.

    python -m scripts.chat_web -m 64                                      # in another terminal
    python -m dev.fuzz_server --url http://localhost:8000 --num_requests 5000

Schemathesis makes requests to each described operation, half of them valid by the description and half not, and checks
the responses: status and content type are described, a body fits its schema, an invalid request is refused. Needs
schemathesis (`uv pip install -e '.[dev]'`).
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, setting

SECONDS_TO_HANG = 60.0


@dataclass(frozen=True)
class Config(Settings):
    url: str = setting("http://localhost:8000", "address of the server", names="path")
    num_requests: int = setting(5000, "requests to send", at_least=1)
    seed: int = setting(1, "of the random requests")


@dataclass
class FuzzResult:
    """Requests that were sent, by status, and the failures of checks, each once, with the request."""

    num_requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0


def fuzz(url: str, num_requests: int, seed: int) -> FuzzResult:
    """Send at least so many requests, as many to each operation with a body, and a few to the others."""
    try:
        import schemathesis
        from hypothesis import HealthCheck, Phase, given, settings
        from hypothesis import seed as with_seed
        from schemathesis.core.result import Ok
        from schemathesis.generation import GenerationMode
    except ImportError as error:
        raise UserError(f"fuzzing needs schemathesis ({error}): uv pip install -e '.[dev]'") from error
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    with_body = [operation for operation in operations if operation.body]
    result = FuzzResult()

    def run(operation: Any, mode: Any, count: int) -> None:
        @with_seed(seed)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            _send(case, result)

        send()

    for operation in operations:
        has_body = operation in with_body
        count = 10 if not has_body else -(-num_requests // (2 * len(with_body)))
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if has_body else (GenerationMode.POSITIVE,):
            run(operation, mode, count)
    while result.num_requests < num_requests:  # hypothesis gives fewer where it has no more different ones
        seed += 1
        for operation in with_body:
            run(operation, GenerationMode.NEGATIVE, 50)
    return result


def _send(case: Any, result: FuzzResult) -> None:
    """Send a request and check its response."""
    from schemathesis import checks
    from schemathesis.core.failures import FailureGroup

    start = time.monotonic()
    result.num_requests += 1
    name = f"{case.method} {case.path}"
    try:
        response = case.call(timeout=SECONDS_TO_HANG)
        result.statuses[response.status_code] += 1
        result.slowest_seconds = max(result.slowest_seconds, time.monotonic() - start)
        case.validate_response(
            response,
            checks=[
                checks.not_a_server_error,
                checks.status_code_conformance,
                checks.content_type_conformance,
                checks.response_schema_conformance,
                # It does not know 413 as a refusal.
                *([checks.negative_data_rejection] if response.status_code != 413 else []),
            ],
        )
    except FailureGroup as group:
        for failure in group.exceptions:
            text = f"{name}: {failure!r}"[:600] + f" for {case.body!r}"[:600]
            if text not in result.failures:
                result.failures.append(text)
    except OSError as error:
        result.failures.append(f"{name}: {error!r} for {case.body!r}"[:600])


def main(config: Config) -> None:
    """Print what came out. Raises `UserError` if a check has failed."""
    result = fuzz(config.url, config.num_requests, config.seed)
    statuses = ", ".join(f"{count} with {status}" for status, count in sorted(result.statuses.items()))
    print0(f"{result.num_requests} requests: {statuses}; the slowest took {result.slowest_seconds:.2f} s")
    for failure in result.failures[:20]:
        print0(failure)
    if result.failures:
        raise UserError(f"{len(result.failures)} responses contradict the description or are faults of the server")


if __name__ == "__main__":
    cli(Config, main, __doc__)
