"""Results of the fault harness."""

from dataclasses import dataclass

# "ok": what the documentation promises held. The rest are defects: work that was lost, a Python traceback, a wrong result without
# a message, harm outside the sandbox, and a program that had to be ended after its time limit.
VERDICTS = ("ok", "lost", "traceback", "silent", "escape", "hang")


@dataclass(frozen=True)
class Outcome:
    """One case of harm: `kind` is its row of the table, `case` says how to repeat it, `detail` the last lines of a defect."""

    kind: str
    case: str
    verdict: str
    detail: str = ""

    def __post_init__(self) -> None:
        assert self.verdict in VERDICTS, self.verdict
