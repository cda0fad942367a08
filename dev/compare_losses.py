"""Run the same few steps of every stage in two checkouts, and compare every number, weight, text and exported file.

    bash dev/compare_losses.sh REF                                       # makes the checkouts, then calls this program
    python dev/compare_losses.py FIRST SECOND --work=FOLDER              # two folders that have a checkout each
    python dev/compare_losses.py FIRST SECOND --work=FOLDER --compiled   # with a compiled training run as well

The program runs each checkout's command lines and reads the files that they write. Each side has its own base folder,
`FOLDER/first-base` and `FOLDER/second-base`, runs in float32 on one thread of the CPU, and leaves its results in
`FOLDER/first.json` and `FOLDER/second.json`. A setting is given in the spelling that the checkout's `--help` lists.
At the end the second side resumes the first side's checkpoints, with settings files in the first side's spelling, and
must arrive at the weights of the uninterrupted run. Exit code: 0 if all is equal, 1 if not.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# Settings by their present name, with the names that they had before.
SETTING_NAMES: dict[str, tuple[str, ...]] = {
    "init_lr_frac": ("lr_scale",),
    "unembedding_lr": ("head_lr",),
    "warmup_ratio": ("warmup",),
    "warmdown_ratio": ("warmdown",),
    "final_lr_frac": ("final_lr",),
    "examples_per_step": ("num_problems",),
    "eval_examples": ("eval_problems",),
    "sft_examples_per_step": ("replay",),
    "task_name": ("tasks",),
}

# Earlier name of a metric -> its present name.
METRIC_NAMES = {"lr_scale": "lr_multiplier"}

# Excluded from the comparison: times and speeds.
EXCLUDED_METRICS = {
    "tokens_per_second",
    "step_seconds",
    "rollout_seconds",
    "mfu",
    "tokens per second",
    "seconds per step",
    "speed (MB/s)",
}

# Excluded parts of meta.json: the settings, whose names and paths may differ, the history, which is compared apart, and
# the hashes of the files: each tensor is compared, and meta.json contains times.
EXCLUDED_META = {"settings", "torch_version", "loop.seconds", "loop.history", "files", "sha256", "first_serial"}

# Excluded exported files: the model card contains the time and the commit of the report.
EXCLUDED_FILES = {"README.md"}

# Parts of a report's section that are compared; the others are prose, times, paths and versions.
REPORT_PARTS = ("metrics", "samples", "answers")


class Fact(NamedTuple):
    """One compared value: `kind` is metric, value, text, tensor or file; `value` is its full text or a SHA-256."""

    kind: str
    name: str
    value: str


Record = list[Fact]


@dataclass(frozen=True)
class Stage:
    """A command line, with settings by their present names, and the results to compare, relative to the base folder.

    `{base}` in the command is the base folder. `prints`: the standard output is a result.
    """

    name: str
    command: str
    checkpoints: str = ""
    section: str = ""
    files: str = ""
    prints: bool = False

    @property
    def module(self) -> str:
        """The module that the command runs."""
        return self.command.split()[0]

    def settings(self, base: Path) -> dict[str, str]:
        """Return the settings of the command by name."""
        flags = shlex.split(self.command.replace("{base}", str(base)))[1:]
        return dict(flag.removeprefix("--").split("=", 1) for flag in flags)


TRAINING = "--device=cpu --compile=off --total_batch_size=1024 --device_batch_size=2"
BASE = (
    "scripts.base_train --device=cpu --depth=2 --head_dim=32 --n_kv_head=2 --max_seq_len=256 --num_iterations=6 "
    "--total_batch_size=1024 --device_batch_size=2 --weight_decay=0.01 --unembedding_lr=0.008 --warmup_ratio=0.3 "
    "--warmdown_ratio=0.4 --final_lr_frac=0.1 --save_every=2 --eval_every=3 --eval_tokens=1024 "
)
STAGES = (
    Stage(
        "dataset",
        "nanochat.dataset --source=storyworld --num_shards=1 --docs_per_shard=400",
        files="base_data/*",
    ),
    Stage(
        "tok_train",
        "scripts.tok_train --vocab_size=512",
        section="tok_train",
        files="tokenizer/*",
    ),
    Stage(
        "base_train",
        BASE + "--compile=off --sample_every=3 --core_metric_every=3",
        checkpoints="base_checkpoints/d2",
        section="base_train",
    ),
    Stage(
        "base_loss",
        "scripts.base_loss --device=cpu --num_samples=3 --max_sample_tokens=32 --eval_tokens=2048",
        section="base_loss",
    ),
    Stage(
        "base_eval",
        "scripts.base_eval --device=cpu",
        section="base_eval",
    ),
    Stage(
        "mid_train",
        f"scripts.mid_train {TRAINING} --mixture={{base}}/mixture.toml --num_iterations=30 --save_every=10 "
        "--eval_every=15 --eval_tokens=1024",
        checkpoints="mid_checkpoints/d2",
        section="mid_train",
    ),
    Stage(
        "chat_sft",
        f"scripts.chat_sft {TRAINING} --num_iterations=4 --save_every=2 --eval_every=2 --eval_tokens=1024 "
        "--init_lr_frac=0.05",
        checkpoints="chatsft_checkpoints/d2",
        section="chat_sft",
    ),
    Stage(
        "chat_rl",
        "scripts.chat_rl --device=cpu --tasks='HardProblems:1|WordProblems:1' --num_iterations=4 --examples_per_step=4 "
        "--num_samples=8 --max_new_tokens=16 --device_batch_size=8 --sft_examples_per_step=4 "
        "--mixture={base}/mixture.toml --init_lr_frac=0.2 --save_every=2 "
        "--eval_every=2 --eval_examples=4 --eval_samples=2",
        checkpoints="chatrl_checkpoints/d2",
        section="chat_rl",
    ),
    Stage(
        "chat_eval sft",
        "scripts.chat_eval --source=sft --device=cpu --max_problems=6 --max_new_tokens=24",
        section="chat_eval_sft",
    ),
    Stage(
        "chat_eval rl, sampled",
        "scripts.chat_eval --source=rl --device=cpu --max_problems=6 --max_new_tokens=16 "
        "--task_name='Facts|HardProblems' --temperature=1.0 --num_samples=4 --top_k=20",
        section="chat_eval_rl",
    ),
    Stage(
        "chat_cli, greedy",
        "scripts.chat_cli --source=sft --device=cpu --prompt='What is 12 * 7?' --temperature=0 --max_tokens=48",
        prints=True,
    ),
    Stage(
        "chat_cli, sampled",
        "scripts.chat_cli --device=cpu --prompt='Who are you?' --temperature=1.2 --top_k=50 --max_tokens=48 --seed=3",
        prints=True,
    ),
    Stage(
        "export_hf",
        "scripts.export_hf --source=sft --out={base}/exported",
        files="exported/*",
    ),
)
COMPILED = Stage(
    "base_train, compiled",
    BASE + "--compile=on --model_tag=compiled --sample_every=-1 --core_metric_every=-1",
    checkpoints="base_checkpoints/compiled",
    section="base_train",
)


class StageError(Exception):
    """A command line that failed: the stage, the side and the end of its messages."""


class Side:
    """A checkout, its base folder, and a process that runs its command lines."""

    def __init__(self, name: str, checkout: Path, base: Path, stages: Sequence[Stage]) -> None:
        self.name = name
        self.base = base.resolve()
        self.record: dict[str, Record] = {}
        write_inputs(self.base)
        environment = {
            "NANOCHAT_DTYPE": "float32",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "WANDB_RUN": "dummy",
            "COLUMNS": "200",
            "PYTHONPATH": str(checkout.resolve()),
            "TORCHINDUCTOR_CACHE_DIR": str(self.base / "compiled"),
        }
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve"],
            cwd=checkout,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        modules = sorted({stage.module for stage in stages})
        self.listed = {module: settings_in_help(self._run(f"{module} --help", module, "--help")) for module in modules}

    def _run(self, title: str, module: str, *arguments: str, base: Path | None = None) -> str:
        """Run a command line to its end, and return its standard output."""
        folder = base or self.base
        output = folder / "output.txt"
        messages = folder / "messages.txt"
        request = [module, list(arguments), str(folder), str(output), str(messages)]
        assert self.server.stdin is not None, "it is a pipe"
        assert self.server.stdout is not None, "it is a pipe"
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        reply = self.server.stdout.readline().strip()
        text = output.read_text(encoding="utf-8") if output.exists() else ""
        if reply != "0":
            lines = (text + messages.read_text(encoding="utf-8")).strip().splitlines() if messages.exists() else []
            last = "\n    ".join(lines[-8:])
            raise StageError(f"{title}: failed in {self.name} (exit code {reply or 'unknown'})\n    {last}")
        return text

    def close(self) -> None:
        """End the process."""
        assert self.server.stdin is not None, "it is a pipe"
        self.server.stdin.close()
        self.server.wait()

    def spelled_settings(self, stage: Stage) -> dict[str, str]:
        """The stage's settings as this checkout spells them."""
        listed = self.listed[stage.module]
        settings = stage.settings(self.base)
        return {spelling(name, listed, stage.module): value for name, value in settings.items()}

    def run(self, stage: Stage) -> Record:
        """Run a stage, and return its results."""
        flags = [f"--{name}={value}" for name, value in self.spelled_settings(stage).items()]
        output = self._run(stage.name, stage.module, *flags)
        self.record[stage.name] = [*collect(stage, self.base, output)]
        return self.record[stage.name]

    def resume(self, stage: Stage, other: Side, base: Path) -> Record:
        """Resume the first checkpoint that `other` saved in this stage, and return the last one that this side writes.

        `base`: a new folder, for a copy of what `other` has. The settings come from a file in the spelling of `other`.
        """
        shutil.copytree(other.base, base, ignore=shutil.ignore_patterns("exported", "compiled"))
        for folder in sorted((base / stage.checkpoints).glob("step_*"))[1:]:
            shutil.rmtree(folder)
        settings_file = base / "settings.toml"
        settings_file.write_text(as_toml(other.spelled_settings(stage)), encoding="utf-8")
        self._run(f"{stage.name}, resumed", stage.module, str(settings_file), "--resume", base=base)
        return [*checkpoint_facts(last_checkpoint(base / stage.checkpoints))]


def serve() -> None:
    """Run the command lines that come as lines of JSON, each in a fork of this process; answer with its exit code.

    A fork has PyTorch and the modules of earlier `--help` calls already loaded, so a run starts at once.
    """
    sys.path.remove(str(Path(__file__).resolve().parent))  # modules come from the checkout, through PYTHONPATH
    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # runpy: it was loaded before the fork
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C also goes to this process, and to its forks
    import torch  # noqa: F401

    requests = os.fdopen(os.dup(0), encoding="utf-8")  # sys.stdin stays unread, as in a new process
    for line in requests:
        module, arguments, base, output, messages = json.loads(line)
        if "--help" in arguments:
            importlib.import_module(module)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for path, number in ((output, 1), (messages, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
            os.environ["NANOCHAT_BASE_DIR"] = base
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def write_inputs(base: Path) -> None:
    """Make a base folder with a small CORE bundle, and conversations that end in digits.

    A model trained on them for a few steps guesses numbers and calls the calculator. Some of its answers in
    reinforcement learning are therefore right, and the step has a gradient.
    """
    data = base / "eval_bundle" / "eval_data"
    data.mkdir(parents=True)
    tasks = {
        "choice": ("multiple_choice", {"query": "Is {n} red?", "choices": ["yes", "not at all"], "gold": 1}),
        "schema": ("schema", {"context_options": ["{n} is", "{n} was"], "continuation": "it", "gold": 0}),
        "words": ("language_modeling", {"context": "{n} and {n}", "continuation": "and"}),
    }
    bundle = ["icl_tasks:"]
    for name, (kind, example) in tasks.items():
        bundle += [f"- label: {name}", f"  dataset_uri: {name}.jsonl", "  num_fewshot: [1]", f"  icl_task_type: {kind}"]
        lines = [json.dumps(example).replace("{n}", str(number)) for number in range(8)]
        (data / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (base / "eval_bundle" / "core.yaml").write_text("\n".join(bundle), encoding="utf-8")
    table = "Eval Task,Random baseline\n" + "".join(f"{name},0\n" for name in tasks)
    (base / "eval_bundle" / "eval_meta_data.csv").write_text(table, encoding="utf-8")

    conversations = []
    for number in range(400):
        answer: Any = f"#### {number * 7 % 9 + 1}"
        if number % 4 == 0:
            left = number % 5 + 1
            right = number % 7 + 1
            answer = [
                {"type": "python", "text": f"{left}*{right}"},
                {"type": "python_output", "text": str(left * right)},
                {"type": "text", "text": f"\n#### {left * right}"},
            ]
        question = f"How many are {number % 9 + 1} of them? {number}"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        conversations.append(json.dumps({"messages": messages}))
    (base / "digits.jsonl").write_text("\n".join(conversations), encoding="utf-8")
    path = json.dumps(str(base / "digits.jsonl"))
    entries = [f'[[entry]]\ntask = "CustomJSON"\nepochs = 4\noptions = {{path = {path}}}\n']
    tasks_of_the_world = ("WorldChat", "WorldNotes", "Facts", "FactChoice", "WordProblems", "SpellingBee", "Identity")
    entries += [f'[[entry]]\ntask = "{task}"\nrows = 20\n' for task in tasks_of_the_world]
    (base / "mixture.toml").write_text("\n".join(entries), encoding="utf-8")


# --- names ------------------------------------------------------------------------------------------------------------


def settings_in_help(text: str) -> set[str]:
    """Return the settings that a `--help` text lists.

    >>> sorted(settings_in_help("options:\\n  -a TEXT, --task_name TEXT\\n   see --other\\n  --batch-size INT"))
    ['batch_size', 'task_name']
    """
    lines = [line for line in text.splitlines() if re.match(r" {1,3}-", line)]
    return {name.replace("-", "_") for line in lines for name in re.findall(r"--([a-z][\w-]*)", line)}


def spelling(name: str, listed: set[str], module: str) -> str:
    """Return the spelling of a setting that a checkout lists: the present name, or an earlier one."""
    candidates = (name, *SETTING_NAMES.get(name, ()))
    for candidate in candidates:
        if candidate in listed:
            return candidate
    raise StageError(f"{module} has none of the settings {', '.join(candidates)}: add its spelling to SETTING_NAMES")


def as_toml(settings: Mapping[str, str]) -> str:
    """Return a settings file.

    >>> as_toml({"depth": "2", "init_lr_frac": "0.05", "compile": "off"})
    'depth = 2\\ninit_lr_frac = 0.05\\ncompile = "off"\\n'
    """
    number = re.compile(r"-?[0-9]+(\.[0-9]+)?")
    texts = {name: value if number.fullmatch(value) else json.dumps(value) for name, value in settings.items()}
    return "".join(f"{name} = {text}\n" for name, text in texts.items())


# --- results ----------------------------------------------------------------------------------------------------------


def collect(stage: Stage, base: Path, output: str) -> Iterator[Fact]:
    """Yield all results of a stage that are compared, training steps first."""
    if stage.checkpoints:
        yield from checkpoint_facts(last_checkpoint(base / stage.checkpoints))
        samples = [line for line in output.splitlines() if line.startswith("  ") and " | " in line]
        yield from (Fact("text", f"sample {number}", sample) for number, sample in enumerate(samples))
    if stage.section:
        section = json.loads((base / "report" / f"{stage.section}.json").read_text(encoding="utf-8"))
        for part in REPORT_PARTS:
            yield from value_facts(f"report {part}", section.get(part, {}), EXCLUDED_METRICS)
    if stage.files:
        for path in sorted(base.glob(stage.files)):
            if path.name not in EXCLUDED_FILES:
                yield Fact("file", path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    if stage.prints:
        yield Fact("text", "output", repr(output))


def last_checkpoint(folder: Path) -> Path:
    """Return the checkpoint of the highest step in a run's folder."""
    return max(folder.glob("step_*"))


def checkpoint_facts(folder: Path) -> Iterator[Fact]:
    """Yield the history of the run, the rest of meta.json, and a hash of every tensor."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    yield from history_facts(meta["loop"]["history"])
    yield from value_facts("meta.json", meta, EXCLUDED_META)
    for name in ("model.safetensors", "optimizer.safetensors"):
        yield from tensor_facts(folder / name)


def history_facts(history: Sequence[Mapping[str, float]]) -> Iterator[Fact]:
    """Yield the metrics of every step and event, under their present names.

    >>> list(history_facts([{"step": 1, "lr_scale": 1.0, "tokens_per_second": 7.0}]))
    [Fact(kind='metric', name='step 1: lr_multiplier', value='1.0')]
    """
    for row in history:
        for name, value in row.items():
            if name != "step" and name not in EXCLUDED_METRICS:
                yield Fact("metric", f"step {row['step']}: {METRIC_NAMES.get(name, name)}", repr(value))


def value_facts(name: str, value: Any, excluded: set[str], path: str = "") -> Iterator[Fact]:
    """Yield the numbers and texts in nested dictionaries and lists. `excluded`: dotted paths that are left out.

    >>> list(value_facts("meta.json", {"loop": {"step": 6, "seconds": 0.1}}, {"loop.seconds"}))
    [Fact(kind='value', name='meta.json loop.step', value='6')]
    """
    if path in excluded:
        return
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from value_facts(name, inner, excluded, f"{path}.{key}" if path else str(key))
    else:
        yield Fact("value", f"{name} {path}", repr(value))


def tensor_facts(path: Path) -> Iterator[Fact]:
    """Yield dtype, shape and SHA-256 of every tensor of a safetensors file: a JSON header, and the bytes after it."""
    data = memoryview(path.read_bytes())
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(bytes(data[8 : 8 + size]))
    for name, tensor in sorted(header.items()):
        if name != "__metadata__":
            start, end = (8 + size + offset for offset in tensor["data_offsets"])
            digest = hashlib.sha256(data[start:end]).hexdigest()
            yield Fact("tensor", f"{path.name} {name}", f"{tensor['dtype']} {tensor['shape']} {digest}")


# --- comparison -------------------------------------------------------------------------------------------------------


def first_difference(first: Record, second: Record) -> str | None:
    """Return the first result that differs with both its values, or None if the records are equal.

    >>> first_difference([Fact("metric", "step 2: loss", "0.5")], [Fact("metric", "step 2: loss", "0.25")])
    'step 2: loss: 0.5 != 0.25'
    """
    absent = "(absent)"
    before = {fact[:2]: fact.value for fact in first}
    after = {fact[:2]: fact.value for fact in second}
    for key in {**before, **after}:
        values = before.get(key, absent), after.get(key, absent)
        if values[0] != values[1]:
            return f"{key[1]}: {values[0]} != {values[1]}"
    return None


def count(record: Record) -> str:
    """Return the size of a record in words.

    >>> count([Fact("metric", "step 1: loss", "0.5"), Fact("metric", "step 2: loss", "0.5"), Fact("file", "a", "0")])
    '2 steps, 1 file'
    """
    numbers = Counter(fact.kind for fact in record if fact.kind != "metric")
    steps = {fact.name.partition(":")[0] for fact in record if fact.kind == "metric"}
    counts = {"step": len(steps), **{kind: numbers[kind] for kind in ("value", "text", "tensor", "file")}}
    return ", ".join(f"{number} {kind}{'s' * (number != 1)}" for kind, number in counts.items() if number)


def show(name: str, first: Record, second: Record) -> bool:
    """Print the line of a stage. Return True if its records are equal."""
    difference = first_difference(first, second)
    print(f"{name}: {f'DIFFERENT at {difference}' if difference else f'equal ({count(first)})'}", flush=True)
    return difference is None


def compare(first: Side, second: Side, stages: Sequence[Stage], work: Path) -> list[str]:
    """Run all stages on both sides at once, then the resumed ones. Return the names of those that differ."""
    different = []
    with ThreadPoolExecutor(2) as pool:
        for stage in stages:
            records = list(pool.map(Side.run, (first, second), (stage, stage)))
            if not show(stage.name, *records):
                different.append(stage.name)
        for stage in stages:
            if stage.checkpoints and stage is not COMPILED:
                name = f"{stage.name}, resumed from {first.name}"
                whole = list(checkpoint_facts(last_checkpoint(first.base / stage.checkpoints)))
                resumed = second.resume(stage, first, work / f"resumed-{stage.name}")
                if not show(name, whole, resumed):
                    different.append(name)
    return different


def main() -> int:
    """Read the command line, compare, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("first", type=Path, help="folder of a checkout")
    parser.add_argument("second", type=Path, help="folder of the checkout to compare with it")
    parser.add_argument("--work", type=Path, required=True, help="folder for both base folders and the records")
    parser.add_argument("--names", nargs=2, metavar=("FIRST", "SECOND"), help="names of the sides in messages")
    parser.add_argument("--compiled", action="store_true", help="compare a compiled training run as well")
    options = parser.parse_args()
    names = options.names or [str(options.first), str(options.second)]
    stages = [*STAGES, COMPILED] if options.compiled else [*STAGES]
    folders = (options.first, options.second)
    bases = [options.work / f"{number}-base" for number in ("first", "second")]
    start = time.monotonic()
    try:
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(Side, names, folders, bases, [stages] * 2)
        print(f"{first.name} against {second.name}", flush=True)
        different = compare(first, second, stages, options.work)
    except StageError as error:
        print(error)
        return 1
    for number, side in (("first", first), ("second", second)):
        side.close()
        (options.work / f"{number}.json").write_text(json.dumps(side.record, indent=1), encoding="utf-8")
    verdict = f"different, first in {different[0]}" if different else "equal to the last bit"
    print(f"{first.name} and {second.name}: {verdict} ({time.monotonic() - start:.0f} s)")
    return 1 if different else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        sys.path[0] = str(Path(__file__).resolve().parent.parent)  # for this checkout's nanochat; a side has its own
        from nanochat.common import command

        with command():
            sys.exit(main())
