"""A generation loop that generates what a test tells it to: `GenerationLoop`'s interface over a `ScriptedEngine`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from nanochat.common import UserError
from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from tests.support.scripted_engine import SPECIAL, ScriptedEngine

END_IDS = (SPECIAL["<|assistant_end|>"], SPECIAL["<|bos|>"])


class ScriptedLoop:
    """Runs `max_rows` completions at once, a token of each in turn. Log probabilities are made up from the ids."""

    def __init__(self, engine: ScriptedEngine, max_rows: int = 1) -> None:
        self.engine = engine
        self.max_rows = max_rows
        self._condition = threading.Condition()
        self._waiting: list[GenerationRequest] = []
        self._running: dict[GenerationRequest, Iterator[Any]] = {}
        self._cancelled: set[GenerationRequest] = set()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        with self._condition:
            if self._is_closed:
                raise UserError("the loop is closed")
            self._waiting.append(request)
            self._condition.notify()

    def cancel(self, request: GenerationRequest) -> None:
        with self._condition:
            if request in self._waiting:
                self._waiting.remove(request)
            elif request in self._running:
                self._cancelled.add(request)

    def place(self, request: GenerationRequest) -> int:
        with self._condition:
            return self._waiting.index(request) + 1 if request in self._waiting else 0

    @property
    def num_unfinished(self) -> int:
        with self._condition:
            return len(self._waiting) + len(self._running)

    def stats(self) -> dict[str, Any]:
        with self._condition:
            return {"running": len(self._running), "waiting": len(self._waiting)}

    def close(self, seconds: float) -> None:
        with self._condition:
            self._is_closed = True
            left, self._waiting = self._waiting, []
            self._condition.notify()
        for request in left:
            request.on_event(FinishEvent("shutdown"))
        deadline = time.monotonic() + seconds
        while self._running and time.monotonic() < deadline:
            time.sleep(0.005)
        with self._condition:
            for request in self._running:
                self._cancelled.add(request)
                request.on_event(FinishEvent("shutdown"))

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._running or self._is_closed)
                if self._is_closed and not self._running:
                    return
                while self._waiting and len(self._running) < self.max_rows:
                    request = self._waiting.pop(0)
                    self._running[request] = self.engine.stream(request.tokens, request.params)
                rows = list(self._running.items())
            for request, columns in rows:
                self._step(request, columns)

    def _step(self, request: GenerationRequest, columns: Any) -> None:
        try:
            [token], [mask] = next(columns)
        except StopIteration:
            last = getattr(request, "last_token", None)
            self._end(request, FinishEvent("stop" if last in END_IDS else "length"))
        except Exception as error:
            self._end(request, FinishEvent("error", f"the model failed: {error!r}"))
        else:
            if request in self._cancelled:
                columns.close()
                self._end(request, FinishEvent("cancelled"))
                return
            request.last_token = token  # type: ignore[attr-defined]
            num_logprobs = request.num_logprobs
            top = None if num_logprobs is None else [(token + i, -0.5 - i) for i in range(num_logprobs)]
            request.on_event(TokenEvent(token, mask == 0, None if num_logprobs is None else -0.5, top))

    def _end(self, request: GenerationRequest, event: FinishEvent) -> None:
        with self._condition:
            self._running.pop(request, None)
            was_cancelled = request in self._cancelled
            self._cancelled.discard(request)
        if not was_cancelled or event.reason == "cancelled":
            request.on_event(event)
