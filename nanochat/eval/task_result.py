"""The result of a model on a task, for CORE's tasks and for chat tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanochat.reporting.schema import Answers, Metric, proportion


@dataclass(frozen=True)
class TaskResult:
    """The result of a model on a task: for each example, in the task's order, how many samples were correct."""

    name: str
    num_correct: list[int]  # correct samples of each example
    chance: float  # the accuracy of guessing
    baseline: float  # the accuracy that is 0 on the centred scale
    num_cut: int  # examples whose prompt was too long for the context and lost its beginning
    examples_hash: str  # results with the same hash can be compared example by example
    seconds: float
    num_samples: int = 1  # samples of each example
    num_tool_calls: int = 0  # completions with a tool result, among num_examples * num_samples

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self.num_correct)

    @property
    def correct(self) -> list[bool]:
        """For each example, whether any of its samples is correct (pass@k with k = `num_samples`)."""
        return [count > 0 for count in self.num_correct]

    @property
    def accuracy(self) -> float:
        """Share of the examples that are correct; 0 if there are no examples."""
        return sum(self.correct) / max(1, self.num_examples)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy."""
        low, high = proportion(sum(self.correct), self.num_examples)["interval"]
        return low, high

    @property
    def centred(self) -> float:
        """The accuracy on the scale on which the baseline is 0 and a perfect score is 1."""
        return self.centre(self.accuracy)

    def centre(self, accuracy: float) -> float:
        """Return an accuracy on the centred scale."""
        return (accuracy - self.baseline) / (1 - self.baseline)

    @property
    def standard_error(self) -> float:
        """Standard error of the centred accuracy: sqrt(p (1 - p) / n) with p = (correct + 1) / (n + 2).

        p is the mean under a uniform prior (Laplace's rule of succession, Théorie analytique des probabilités, 1812),
        so the error is above 0 even if all examples are correct, or none is. CORE's interval therefore covers the true
        value in 95 of 100 cases even with a single example of each task.
        """
        p = (sum(self.correct) + 1) / (self.num_examples + 2)
        return math.sqrt(p * (1 - p) / self.num_examples) / (1 - self.baseline)

    @property
    def tool_share(self) -> float:
        """Share of the completions that have a tool result."""
        return self.num_tool_calls / max(1, self.num_examples * self.num_samples)

    @property
    def metric(self) -> Metric:
        """The accuracy as a metric of the report, with its 95% interval."""
        return {**proportion(sum(self.correct), self.num_examples), "chance": self.chance}

    @property
    def answers(self) -> Answers:
        """The result of each example as the report stores it: `{"problems": hash, "correct": "0110..."}`."""
        return {"problems": self.examples_hash, "correct": "".join(str(int(is_correct)) for is_correct in self.correct)}
