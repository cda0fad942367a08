"""The smallest possible run of all stages, its undisturbed results, and how a stopped stage is continued.

`World.prepare` runs every stage once with one process, and those that train once more with two. A case of harm starts
from a copy of the files that the stages before have left, and has to end with the same results to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.fault_kinds.launcher import Job, Launcher

TRAINING = "--device=cpu --compile=off --total_batch_size=512 --device_batch_size=2 --num_iterations=8 --save_every=2"
EVALUATION = "--eval_every=4 --eval_tokens=512"
TASKS = "--tasks=WordProblems:1"


@dataclass(frozen=True)
class Stage:
    """A command line, and where its result is, relative to the base folder: checkpoints, a section, or files."""

    name: str
    command: str
    checkpoints: str = ""
    section: str = ""
    files: str = ""

    @property
    def module(self) -> str:
        """The module that the command runs."""
        return self.command.split()[0]

    @property
    def trains(self) -> bool:
        """True if the stage has checkpoints, from which it can be resumed."""
        return bool(self.checkpoints)


STAGES = (
    Stage("dataset", "nanochat.dataset --source=storyworld --num_shards=1 --docs_per_shard=200", files="base_data/*"),
    Stage("tok_train", "scripts.tok_train --vocab_size=512", files="tokenizer/*"),
    Stage(
        "base_train",
        f"scripts.base_train --depth=1 --head_dim=32 --max_seq_len=128 {TRAINING} {EVALUATION} --sample_every=4 "
        "--core_metric_every=-1",
        checkpoints="base_checkpoints/d1",
    ),
    Stage(
        "base_loss",
        "scripts.base_loss --device=cpu --num_samples=1 --max_sample_tokens=8 --eval_tokens=512",
        section="base_loss",
    ),
    Stage("mid_train", f"scripts.mid_train {TRAINING} {EVALUATION}", checkpoints="mid_checkpoints/d1"),
    Stage("chat_sft", f"scripts.chat_sft {TRAINING} {EVALUATION}", checkpoints="chatsft_checkpoints/d1"),
    Stage(
        "chat_eval",
        "scripts.chat_eval --source=sft --device=cpu --max_problems=4 --max_new_tokens=8 --task_name=WordProblems",
        section="chat_eval_sft",
    ),
    Stage(
        "chat_rl",
        f"scripts.chat_rl --device=cpu {TASKS} --num_iterations=6 --examples_per_step=2 --num_samples=4 "
        "--max_new_tokens=8 --device_batch_size=4 --sft_examples_per_step=2 --save_every=2 --eval_every=-1 "
        "--eval_examples=2 --eval_samples=2",
        checkpoints="chatrl_checkpoints/d1",
    ),
    Stage("export_hf", "scripts.export_hf --source=sft --out={base}/exported", files="exported/*"),
)
STAGE_OF = {stage.name: stage for stage in STAGES}
EXPORT_EXCLUDED = {"README.md"}  # contains a time
SECTION_PARTS = ("metrics", "answers", "samples")


def results(stage: Stage, base: Path) -> dict[str, str]:
    """Return the results of a stage by name, if it has any: hashes of files, parts of a section."""
    if stage.trains:
        complete = [path for path in (base / stage.checkpoints).glob("step_*") if (path / "meta.json").exists()]
        if not complete:
            return {}
        last = max(complete, key=lambda path: int(path.name[5:11]))
        loop = json.loads((last / "meta.json").read_text(encoding="utf-8"))["loop"]
        loop = {name: value for name, value in loop.items() if name not in ("seconds", "stopped")}  # not results
        history = [
            {key: value for key, value in point.items() if "second" not in key} for point in loop.pop("history", [])
        ]
        facts = {f"{name}": digest(last / name) for name in ("model.safetensors", "optimizer.safetensors")}
        return {**facts, "step": last.name, "loop": json.dumps(loop, sort_keys=True), "points": str(len(history))}
    if stage.section:
        file = base / "report" / f"{stage.section}.json"
        if not file.exists():
            return {}
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            part: json.dumps(without_times(content[part]), sort_keys=True) for part in SECTION_PARTS if part in content
        }
    folder, pattern = stage.files.split("/")
    return {
        path.name: digest(path)
        for path in sorted((base / folder).glob(pattern))
        if path.is_file() and path.name not in EXPORT_EXCLUDED and not path.name.startswith(".")
    }


def without_times(value: Any) -> Any:
    """Return a JSON value without the members that are times or speeds."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if "second" not in key and "speed" not in key}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def remove(folder: Path) -> None:
    """Remove a folder, whatever is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def leftovers(base: Path) -> list[str]:
    """Return the temporary files and incomplete checkpoints in a base folder."""
    return sorted(
        str(path.relative_to(base)) for path in base.rglob("*") if path.name.endswith((".tmp", ".part", ".old"))
    )


class World:
    """The undisturbed runs, in `folder`.

    `expected[stage, processes]`: its results; `seconds[stage, processes]`: how long it took. `written[stage]`,
    `largest[stage]`: bytes of all files that it leaves, and of the largest.
    """

    def __init__(self, folder: Path, launcher: Launcher) -> None:
        self.folder = folder
        self.launcher = launcher
        self.expected: dict[tuple[str, int], dict[str, str]] = {}
        self.seconds: dict[tuple[str, int], float] = {}
        self.written: dict[str, int] = {}
        self.largest: dict[str, int] = {}

    def prepare(self, names: tuple[str, ...] = tuple(STAGE_OF), processes: tuple[int, ...] = (1, 2)) -> None:
        """Run the stages, and keep the files that each starts from. `names`: those that will be disturbed."""
        base = self.folder / "undisturbed"
        base.mkdir(parents=True)
        last = max(index for index, stage in enumerate(STAGES) if stage.name in names)
        for stage in STAGES[: last + 1]:
            shutil.copytree(base, self.before(stage))
            for count in (1, 2) if stage.trains and 2 in processes and stage.name in names else (1,):
                run = base if count == 1 else self.folder / "two-processes"
                if count == 2:
                    shutil.copytree(self.before(stage), run)
                start = time.perf_counter()
                for job in self.start(stage, run, count):
                    job.wait(300)
                    assert job.code == 0, f"{stage.name} does not run undisturbed:\n{job.text}"
                self.seconds[stage.name, count] = time.perf_counter() - start
                if count == 1:
                    had = {path.relative_to(self.before(stage)) for path in self.before(stage).rglob("*")}
                    sizes = [path.stat().st_size for path in run.rglob("*") if path.relative_to(run) not in had]
                    self.written[stage.name], self.largest[stage.name] = sum(sizes), max(sizes)
                self.expected[stage.name, count] = results(stage, run)
                assert self.expected[stage.name, count], f"{stage.name} has no results"
                if count == 2:
                    shutil.rmtree(run)

    def before(self, stage: Stage) -> Path:
        """Return the folder with the files that the stage starts from."""
        return self.folder / f"before-{stage.name}"

    def copy(self, stage: Stage, name: str) -> Path:
        """Return a new base folder with the files that the stage starts from."""
        base = self.folder / name
        shutil.copytree(self.before(stage), base)
        return base

    def start(self, stage: Stage, base: Path, processes: int = 1, resume: bool = False, **options: Any) -> list[Job]:
        """Start a stage with one process or more. `resume`: add --resume where the stage has a checkpoint."""
        arguments = stage.command.replace("{base}", str(base)).split()[1:]
        if resume and stage.name in ("dataset", "export_hf"):
            arguments.append("--overwrite")
        if resume and stage.trains and any((base / stage.checkpoints).glob("step_*/meta.json")):
            arguments.append("--resume")
        if processes == 1:
            return [self.launcher.start(stage.module, arguments, base, **options)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        # One that waits for another one that was killed ends soon. torchrun would end it.
        local = {"LOCAL_WORLD_SIZE": str(processes), "NANOCHAT_TIMEOUT": "30"}
        return [
            self.launcher.start(stage.module, arguments, base, environment={**common, **local, **rank}, **options)
            for rank in ranks
        ]
