"""Results of the fault harness."""

from dataclasses import dataclass

# "ok": the promise held. The rest are defects: lost work, a Python traceback, a wrong result without a message, harm
# outside the sandbox or a control character on the terminal, a program that was ended after its time limit, and
# temporary files that stayed.
VERDICTS = ("ok", "lost", "traceback", "silent", "escape", "hang", "leftover")


@dataclass(frozen=True)
class Outcome:
    """One case of harm. `kind`: its row of the table. `case`: how to repeat it. `detail`: last lines of a defect."""

    kind: str
    case: str
    verdict: str
    detail: str = ""

    def __post_init__(self) -> None:
        assert self.verdict in VERDICTS, self.verdict


def last_lines(*texts: str, count: int = 12) -> str:
    """Return the last lines of each text, for the detail of an outcome."""
    return "\n".join("\n".join(text.strip().splitlines()[-count:]) for text in texts)
