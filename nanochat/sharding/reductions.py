"""The reductions of a step's gradients, started while the backward pass runs.

Their order is fixed, from the head down to the embedding: if processes started collectives in different orders, they
would wait for each other for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from nanochat.sharding.buckets import Bucket


class ReductionQueue:
    """The reductions of one step, started in a fixed order that is the same on all processes.

    `params` are the parameters of the model in the order in which its forward pass uses them. A backward pass completes
    their gradients roughly in the reverse order.
    """

    def __init__(self, buckets: Sequence[Bucket], params: Iterable[nn.Parameter]) -> None:
        position_of = {id(param): position for position, param in enumerate(params)}

        def first_use(item: tuple[Bucket, Sequence[int]]) -> int:
            bucket, portion = item
            return min(position_of[id(bucket.params[index])] for index in portion)

        portions = [(bucket, portion) for bucket in buckets for portion in bucket.portions]
        self.order = sorted(portions, key=first_use, reverse=True)
        self.num_started = 0
        self.complete: set[int] = set()  # ids of the parameters with a complete gradient
        self.is_last_backward = False

    def watch_gradients(self) -> None:
        """Have the backward pass report each gradient that it completes."""
        for bucket, portion in self.order:
            for index in portion:
                bucket.params[index].register_post_accumulate_grad_hook(self._on_gradient)

    @torch.no_grad()
    def _on_gradient(self, param: Tensor) -> None:
        """Start the reductions that can start now that the gradient of `param` is complete."""
        if not self.is_last_backward:
            return
        assert id(param) not in self.complete, "a gradient was added to after its reduction may have started"
        self.complete.add(id(param))
        while self.num_started < len(self.order):
            bucket, portion = self.order[self.num_started]
            if not all(id(bucket.params[index]) in self.complete for index in portion):
                return
            self._start_next()

    def start_remaining(self) -> None:
        """Start the reductions that have not started during the backward pass. Ends the step for this queue."""
        while self.num_started < len(self.order):
            self._start_next()
        self.num_started = 0
        self.complete.clear()
        self.is_last_backward = False

    def _start_next(self) -> None:
        bucket, portion = self.order[self.num_started]
        self.num_started += 1
        bucket.start_reduction(portion)
