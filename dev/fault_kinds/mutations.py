"""Damaged and malicious files of every kind that the system reads.

A file is changed (bits, cuts, zeros, values of JSON of other types and sizes), and the program that reads it is run. It
must end with one line of error, or, where the change does not matter, with the same result. Files with checksums must
be refused.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.fault_kinds.kills import LIMIT
from dev.fault_kinds.launcher import Launcher
from dev.fault_kinds.outcome import Outcome, last_lines
from dev.fault_kinds.stages import EVALUATION, STAGE_OF, TRAINING, World, remove, results

CHAT = "scripts.chat_cli --source=sft --device=cpu --prompt=Hello --temperature=0 --max_tokens=8"
LOSS = STAGE_OF["base_loss"].command
MID = f"scripts.mid_train {TRAINING} {EVALUATION} --num_iterations=1 --eval_every=-1 --save_every=-1"


@dataclass(frozen=True)
class Target:
    """Files of one kind, and the program that reads them.

    `checksum`: no change may be accepted. `result`: the program's result must not change unless it fails; "" if other
    content may give another result.
    """

    kind: str
    files: str  # relative to the base folder, with wildcards
    command: str
    result: str = ""  # "output", or the name of a stage whose results count
    checksum: bool = False
    dtype: str = "float32"


TARGETS = (
    Target("meta.json", "chatsft_checkpoints/d1/step_000008/meta.json", CHAT, "output"),
    Target("model.safetensors", "chatsft_checkpoints/d1/step_000008/model.safetensors", CHAT, "output", checksum=True),
    Target(
        "optimizer.safetensors",
        "base_checkpoints/d1/step_000008/optimizer.safetensors",
        STAGE_OF["base_train"].command.replace("--num_iterations=8", "--num_iterations=9") + " --resume",
        checksum=True,
    ),
    Target("tokenizer", "tokenizer/*", LOSS, "base_loss"),
    Target("shards", "base_data/*.parquet", LOSS, "base_loss", checksum=True),
    Target("manifest.json", "base_data/manifest.json", LOSS, "base_loss"),
    Target("report sections", "report/*.json", "nanochat.report"),
    Target("exported model", "exported/*", "scripts.import_hf {base}/exported --model_tag=imported"),
    Target("mixture", "inputs/mixture.toml", MID + " --mixture={base}/inputs/mixture.toml"),
    Target("conversations", "inputs/conversations.jsonl", MID + " --conversations={base}/inputs/conversations.jsonl"),
    Target("evaluation bundle", "eval_bundle/**/*", "scripts.base_eval --device=cpu"),
    Target("settings file", "inputs/settings.toml", "scripts.chat_cli {base}/inputs/settings.toml"),
    Target("texts", "texts/*", "nanochat.dataset --source={base}/texts --overwrite"),
    Target("cache", "cpu.json", CHAT, dtype=""),  # the dtype is then chosen by a stored measurement
)

VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 10**9, 10**30, 1e308, float("nan"), float("inf"), 0.5),
    *("", "x", "../../victim.txt", "/etc/passwd", "\x00", "\x1b]52;c;aGk=\x07\x1b[2J", "\ud800", "a" * 100_000, "1e9"),
    *([], {}, [[]], [None], {"": None}, [[[[[[]]]]]], [1] * 10_000, {"step": 1}),
)
DEEP = "[" * 3000 + "]" * 3000
YAML_BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\n"


# --- changes ----------------------------------------------------------------------------------------------------------


def damage(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with a flipped bit, a cut, zeros, or random bytes."""
    if not data:
        return rng.randbytes(10)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 8, 512)))
    how = rng.choice(("flip", "flip", "flip", "cut", "zero", "random", "insert", "remove", "empty", "twice"))
    if how == "flip":
        return data[:start] + bytes([data[start] ^ (1 << rng.randrange(8))]) + data[start + 1 :]
    parts: dict[str, Callable[[], bytes]] = {
        "cut": lambda: data[:start],
        "zero": lambda: data[:start] + bytes(end - start) + data[end:],
        "random": lambda: data[:start] + rng.randbytes(end - start) + data[end:],
        "insert": lambda: data[:start] + rng.randbytes(end - start) + data[start:],
        "remove": lambda: data[:start] + data[end:],
        "empty": lambda: b"",
        "twice": lambda: data * 2,
    }
    return parts[how]()


def mutate_json(text: str, rng: random.Random) -> str:
    """Return JSON with one value replaced, removed, or nested deeply."""
    value = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in [*node] if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                collect(node[key])

    if not isinstance(value, dict | list) or not value:
        return json.dumps(rng.choice(VALUES))
    collect(value)
    if len(places) > 50:  # prefer the outer ones: long lists are rarely interesting
        places = places[:30] + rng.sample(places, 20)
    node, key = rng.choice(places)
    how = rng.random()
    if how < 0.15:
        del node[key]
    elif how < 0.2:
        node[key] = "@deep@"
        return json.dumps(value).replace('"@deep@"', DEEP)
    elif how < 0.3 and isinstance(node, dict):
        node[rng.choice(("x", "../x", "\x1b[31m", "__class__", ""))] = node.pop(key)
    else:
        node[key] = rng.choice(VALUES)
    return json.dumps(value)


def mutate_text(text: str, rng: random.Random) -> str:
    """Return TOML, YAML, CSV or plain text with one value or line replaced."""
    lines = text.splitlines()
    number = rng.randrange(len(lines)) if lines else 0
    value = rng.choice(VALUES)
    written = rng.choice(
        (json.dumps(value), str(value).replace("\ud800", "?"), YAML_BOMB, DEEP, "*a", "&a", "!!python/none x")
    )
    match = re.match(r"(.*?[=:,]\s*)(.*)", lines[number]) if lines else None
    if match and rng.random() < 0.7:
        lines[number] = match.group(1) + written
    elif rng.random() < 0.5 and lines:
        del lines[number]
    else:
        lines.insert(number, written)
    return "\n".join(lines)


def mutate(data: bytes, suffix: str, rng: random.Random) -> bytes:
    """Return the content of a file of this suffix, changed."""
    if suffix in (".json", ".jsonl", ".toml", ".yaml", ".csv", ".txt") and rng.random() < 0.7:
        text = data.decode()
        if suffix == ".json":
            return mutate_json(text, rng).encode("utf-8", "surrogatepass")
        if suffix == ".jsonl":
            lines = text.splitlines()
            number = rng.randrange(len(lines))
            lines[number] = mutate_json(lines[number], rng)
            return "\n".join(lines).encode("utf-8", "surrogatepass")
        return mutate_text(text, rng).encode("utf-8", "surrogatepass")
    return damage(data, rng)


# --- running ----------------------------------------------------------------------------------------------------------


def prepare(world: World) -> Path:
    """Return a base folder with every kind of file."""
    world.prepare(names=("export_hf",), processes=(1,))
    base = world.folder / "undisturbed"
    inputs = base / "inputs"
    inputs.mkdir()
    (inputs / "mixture.toml").write_text('[[entry]]\ntask = "WordProblems"\nrows = 50\nepochs = 1\n', encoding="utf-8")
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    lines = [json.dumps(talk if number % 2 else {"messages": talk}) + "\n" for number in range(20)]
    (inputs / "conversations.jsonl").write_text("".join(lines), encoding="utf-8")
    settings = 'source = "sft"\ndevice = "cpu"\nprompt = "Hello"\ntemperature = 0\nmax_tokens = 4\n'
    (inputs / "settings.toml").write_text(settings, encoding="utf-8")
    write_bundle(base / "eval_bundle")
    texts = base / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("A text.\n" * 50, encoding="utf-8")
    rows = [json.dumps({"text": f"Line {number}. " * 5}) + "\n" for number in range(50)]
    (texts / "b.jsonl").write_text("".join(rows), encoding="utf-8")
    shutil.copy(next((base / "base_data").glob("*.parquet")), texts / "c.parquet")
    execute(world, TARGETS[-1], base)  # writes cpu.json
    if not (base / "cpu.json").exists():  # no processor with bf16
        (base / "cpu.json").write_text('{"a": {"speedup": 1.5, "decode_speedup": 1.5, "isa": ""}}', encoding="utf-8")
    (world.folder / "victim.txt").write_text("unharmed", encoding="utf-8")
    return base


def write_bundle(folder: Path) -> None:
    """Write a small evaluation bundle."""
    data = folder / "eval_data"
    data.mkdir(parents=True)
    example = {"query": "Is it red?", "choices": ["yes", "not at all"], "gold": 1}
    (data / "choice.jsonl").write_text("".join(json.dumps(example) + "\n" for _ in range(6)), encoding="utf-8")
    task = "- label: choice\n  dataset_uri: choice.jsonl\n  num_fewshot: [1]\n  icl_task_type: multiple_choice\n"
    (folder / "core.yaml").write_text(f"icl_tasks:\n{task}", encoding="utf-8")
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nchoice,50\n", encoding="utf-8")


def run(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    """Yield the outcomes of `count` changed files, the kinds in turn."""
    with Launcher(folder / "output") as launcher, ThreadPoolExecutor(2) as pool:
        world = World(folder / "world", launcher)
        base = prepare(world)
        expected = {target.kind: undisturbed_result(world, target, base) for target in TARGETS}
        jobs = [
            pool.submit(disturb, world, number, TARGETS[number % len(TARGETS)], base, expected, f"{seed}/{number}")
            for number in range(count)
        ]
        for job in jobs:
            yield job.result()


def undisturbed_result(world: World, target: Target, undisturbed: Path) -> str:
    """Run the program of a target on files that nobody has changed. Return its result."""
    base = world.folder / "expected"
    shutil.copytree(undisturbed, base)
    code, result, text = execute(world, target, base)
    assert code == 0, f"{target.kind}: {target.command} does not run undisturbed:\n{text}"
    remove(base)
    return result


def execute(world: World, target: Target, base: Path) -> tuple[int | None, str, str]:
    """Run the program that reads the target's files. Return its exit code, its result, and all of its output."""
    module, *arguments = target.command.replace("{base}", str(base)).split()
    job = world.launcher.run(module, arguments, base, LIMIT, environment={"NANOCHAT_DTYPE": target.dtype})
    text = job.text
    job.output.unlink()
    if target.result == "output":
        answer = [line for line in text.splitlines() if not line.startswith("Loading ")]
        return job.code, "\n".join(answer[-2:]), text
    if target.result:
        return job.code, json.dumps(results(STAGE_OF[target.result], base), sort_keys=True), text
    return job.code, "", text


def disturb(
    world: World, number: int, target: Target, undisturbed: Path, expected: Mapping[str, str], seed: str
) -> Outcome:
    """Change a file of the target in a copy of the base folder, run the program, and judge it."""
    rng = random.Random(seed)
    base = world.folder / f"mutation-{number}"
    shutil.copytree(undisturbed, base)
    path = rng.choice(sorted(path for path in base.glob(target.files) if path.is_file()))
    before = path.read_bytes()
    while (after := mutate(before, path.suffix, rng)) == before:
        pass
    path.write_bytes(after)
    kind, case = f"changed {target.kind}", f"{path.relative_to(base)}, seed {seed} (in {base})"
    code, result, text = execute(world, target, base)
    if code == -9:
        return Outcome(kind, case, "hang", last_lines(text))
    if "Traceback (most recent call last)" in text:
        return Outcome(kind, case, "traceback", last_lines(text))
    if any((ord(c) < 32 and c not in "\n\t\r") or 127 <= ord(c) < 160 for c in text):
        return Outcome(kind, case, "escape", f"control characters: {last_lines(text)!r}")
    if (world.folder / "victim.txt").read_text(encoding="utf-8") != "unharmed":
        return Outcome(kind, case, "escape", "a file outside the base folder has changed")
    if code not in (0, 2) or (code == 2 and "error: " not in text):
        return Outcome(kind, case, "lost", f"exit code {code} without an error line: {last_lines(text)}")
    if code == 0 and target.checksum:
        return Outcome(kind, case, "silent", f"accepted: {last_lines(text)}")
    if code == 0 and target.result and result != expected[target.kind]:
        return Outcome(kind, case, "silent", f"another result: {last_lines(text)}")
    remove(base)
    return Outcome(kind, case, "ok")
