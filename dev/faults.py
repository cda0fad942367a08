"""Harm the system on purpose, by kind and seed, and count what does not hold.

    python -m dev.faults                               # a small share of everything
    python -m dev.faults --full                        # as many cases as README's table has
    python -m dev.faults --kinds=kills,disks --seed=7  # some kinds, other cases

kills       signals at random moments of every stage, one process and two: resumed, it ends with the files of an
            undisturbed run
documents   kill -9 at random moments of every step of scripts.train_on: run again, it ends with the files of an
            undisturbed run
disks       full, read-only, blocked and slow folders under every stage: one line, no leftovers, and the run can be
            resumed
mutations   flipped bits, cuts, zeros and changed JSON values in every kind of file: one line, or the same result
programs    hostile programs in the sandbox, for each set of layers: no process or file outside is touched
clients     silent, slow, malformed and many HTTP clients: ordinary requests are answered, memory stays flat

Every defect is printed with the case that repeats it. The exit code is 1 if there was one.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from dev.fault_kinds.outcome import VERDICTS, Outcome
from dev.fault_kinds.stages import remove
from nanochat.common import UserError, check_file_writable, print0, write_text_atomic
from nanochat.configurator import Settings, cli, setting

COUNTS = {  # of cases: small, full
    "kills": (10, 200),
    "documents": (11, 34),
    "disks": (12, 60),
    "mutations": (60, 2000),
    "programs": (5, 100),
    "clients": (500, 20_000),
}


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the harness."""

    kinds: str = setting(",".join(COUNTS), "kinds of harm, separated by commas")
    full: bool = setting(False, "the number of cases that README's table gives")
    count: int = setting(-1, "cases of each kind (-1: by `full`)")
    seed: int = setting(0, "seed of the cases")
    out: Path | None = setting(None, "file for the outcomes, a line of JSON each")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted({*self.kinds.split(",")} - {*COUNTS})
        if unknown:
            raise UserError(f"kinds={self.kinds!r}: no kind {', '.join(unknown)}: choose from {', '.join(COUNTS)}")


def main(config: Config) -> None:
    """Run the kinds one after the other, and print a table."""
    if config.out:
        check_file_writable(config.out)
    outcomes: list[Outcome] = []
    folder = Path(tempfile.mkdtemp(prefix="nanochat-faults-"))
    for kind in config.kinds.split(","):
        count = COUNTS[kind][config.full] if config.count == -1 else config.count
        start = time.perf_counter()
        found = run_kind(kind, count, config.seed, folder / kind)
        print0(f"{kind}: {len(found)} cases in {time.perf_counter() - start:.0f} s")
        outcomes += found
    print0()
    print0(table(outcomes))
    if config.out:
        lines = "".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)
        write_text_atomic(config.out, lines)
    if any(outcome.verdict != "ok" for outcome in outcomes):
        print0(f"\nThe files of the cases that failed are in {folder}")
        sys.exit(1)
    remove(folder)


def run_kind(kind: str, count: int, seed: int, folder: Path) -> list[Outcome]:
    """Return the outcomes of `count` cases of a kind. Defects are printed as they appear."""
    module = importlib.import_module(f"dev.fault_kinds.{kind}")
    folder.mkdir(parents=True)
    outcomes: list[Outcome] = []
    with tqdm(desc=kind, total=count, unit="case", disable=None) as progress:
        for outcome in module.run(count, seed, folder):
            outcomes.append(outcome)
            progress.update()
            if outcome.verdict != "ok":
                print0(f"{outcome.verdict.upper()}  {outcome.kind}: {outcome.case}")
                print0("    " + outcome.detail.replace("\n", "\n    "))
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """Return a Markdown table: the cases of each kind, and the defects by verdict."""
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        counts.setdefault(outcome.kind, Counter())[outcome.verdict] += 1
    lines = ["| kind | cases | " + " | ".join(VERDICTS[1:]) + " |", "|---|" + "---:|" * len(VERDICTS)]
    total: Counter[str] = Counter()
    for kind, verdicts in sorted(counts.items()):
        lines.append(row(kind, verdicts))
        total += verdicts
    return "\n".join([*lines, row("all", total)])


def row(kind: str, verdicts: Counter[str]) -> str:
    """Return a line of the table."""
    return f"| {kind} | {verdicts.total()} | " + " | ".join(str(verdicts[verdict]) for verdict in VERDICTS[1:]) + " |"


if __name__ == "__main__":
    cli(Config, main, __doc__)
