"""The shell scripts with stubs for the programs they call: the calls, their order, and the steps that are skipped.

The last test runs the real scripts on a tiny model.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.gpus import FAKE_SMI, write_torch
from tests.support.processes import Forker

ROOT = Path(__file__).resolve().parents[2]

# Records its arguments, makes the file that the step writes, and fails if $FAIL is among its arguments.
FAKE_PYTHON = """#!/bin/bash
case "$*" in
    *nanochat.system.gpu*) [ -z "${NO_CUDA:-}" ] || exec "$PYTHON" "$@"; echo "${GPUS:-0}"; exit ;;
esac
[ "${GPUS:-0}" != 0 ] || [ -z "${OMP_NUM_THREADS:-}" ] || { echo "held to $OMP_NUM_THREADS threads"; exit 4; }
case "$*" in
    *dev.check_settings*) [ -n "${CHECK:-}" ] || exit 0; PYTHONPATH=$CHECK exec "$PYTHON" "$@" ;;
esac
echo "$(basename "$0") $*" >>"$CALLS"
[ -z "${RUN_IDS:-}" ] || echo "${NANOCHAT_RUN_ID:-}" >>"$RUN_IDS"
[ -z "$FAIL" ] || case "$*" in *"$FAIL"*) exit 3 ;; esac
case "$*" in
    *nanochat.dataset*) file=base_data/manifest.json ;;
    *tok_train*) file=tokenizer/tokenizer.json ;;
    *tok_eval*) file=report/tok_eval.json ;;
    *base_train*) file=report/base_train.json ;;
    *base_loss*) file=report/base_loss.json ;;
    *download_only*) exit 0 ;;
    *base_eval*) [ -n "${BUNDLE:-}" ] || exit 0; file=report/base_eval.json ;;
    *mid_train*) file=report/mid_train.json ;;
    *chat_sft*) file=report/chat_sft.json ;;
    *chat_rl*) file=report/chat_rl.json ;;
    *chat_eval*base*) file=report/chat_eval_base.json ;;
    *chat_eval*mid*) file=report/chat_eval_mid.json ;;
    *chat_eval*sft*) file=report/chat_eval_sft.json ;;
    *chat_eval*rl*) file=report/chat_eval_rl.json ;;
    *) exit 0 ;;
esac
mkdir -p "$(dirname "$NANOCHAT_BASE_DIR/$file")"
echo "$RESULT" >"$NANOCHAT_BASE_DIR/$file"
"""
STEPS = ["nanochat.dataset", "scripts.tok_train", "scripts.tok_eval", "scripts.base_train", "scripts.base_loss"]
STEPS += ["scripts.chat_eval"]  # of the base model
STEPS += [f"scripts.{name}" for stage in ("mid_train", "chat_sft", "chat_rl") for name in (stage, "chat_eval")]


def program(path: Path, text: str) -> None:
    """Write an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


class Checkout:
    """A folder with the shell scripts and stubs for the programs they call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.calls = folder / "calls"
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "CALLS": str(self.calls)}
        for name in (
            "speedrun.sh",
            "run1000.sh",
            "train_on.sh",
            "dev/runcpu.sh",
            "dev/own_text.toml",
            "dev/paths.sh",
            "dev/run_steps.sh",
            "dev/setup.sh",
        ):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.folder / name)

    def run(
        self, *command: str, code: int = 0, folder: Path | None = None, **environment: str
    ) -> tuple[str, list[str]]:
        """Run a script, from the checkout or from another folder; return its output and its calls."""
        script, *options = command
        self.calls.write_text("", encoding="utf-8")
        done = subprocess.run(
            ["bash", script if folder is None else os.path.relpath(self.folder / script, folder), *options],
            cwd=folder or self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
        )
        assert done.returncode == code, done.stdout
        return done.stdout, self.calls.read_text(encoding="utf-8").splitlines()


# --- the runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout that is set up, with programs that only record their calls."""
    checkout = Checkout(tmp_path)
    (checkout.folder / "nanochat/data/storyworld").mkdir(parents=True)
    program(checkout.folder / "dev/setup.sh", "")
    program(checkout.folder / ".venv/bin/python", FAKE_PYTHON)
    program(checkout.folder / ".venv/bin/torchrun", FAKE_PYTHON)
    return checkout


def modules(calls: list[str]) -> list[str]:
    """The modules in the calls, without the report."""
    words = [call.split() for call in calls]
    return [call[call.index("-m") + 1] for call in words if "nanochat.report" not in call]


def test_runcpu_does_each_stage_once(checkout: Checkout) -> None:
    printed, calls = checkout.run("dev/runcpu.sh")
    assert modules(calls) == STEPS
    assert calls[0] == "python -m nanochat.dataset --source storyworld -n 3 --overwrite"
    assert calls[-1] == "python -m nanochat.report"
    assert f"{checkout.environment['HOME']}/.cache/nanochat/cpu-storyworld" in printed

    printed, calls = checkout.run("dev/runcpu.sh")
    assert calls == ["python -m nanochat.report"]
    assert printed.count("done already") == len(STEPS)


def test_runcpu_redoes_what_changed(checkout: Checkout, tmp_path: Path) -> None:
    data = tmp_path / "my text"
    data.mkdir()
    (data / "a.txt").write_text("one", encoding="utf-8")
    option = "--data=../my text"
    assert modules(checkout.run("dev/runcpu.sh", option)[1]) == STEPS
    assert modules(checkout.run("dev/runcpu.sh", option)[1]) == []

    _, calls = checkout.run("dev/runcpu.sh", "--depth=2", option)  # the model, and what depends on it
    assert modules(calls) == STEPS[3:]
    assert calls[0].endswith(" --depth=2")

    _, calls = checkout.run("dev/runcpu.sh", "--depth=2", "--rl.num_samples=4", option)  # a later step
    assert modules(calls) == STEPS[-2:]
    assert calls[0].split()[-3:] == ["--num_samples=4", "--save_every=100", "--keep_last=1"]
    checkout.run("dev/runcpu.sh", "--depth=2", option)

    (data / "a.txt").write_text("two", encoding="utf-8")  # the data, and everything that depends on it
    _, calls = checkout.run("dev/runcpu.sh", "--depth=2", option)
    assert modules(calls) == STEPS[:1]
    assert calls[0] == f"python -m nanochat.dataset --source {data.resolve()} --overwrite"
    (data / "a.txt").write_text("three", encoding="utf-8")
    assert modules(checkout.run("dev/runcpu.sh", "--depth=2", option, RESULT="other")[1]) == STEPS

    (tmp_path / "home/.cache/nanochat/cpu-my text/tokenizer/tokenizer.json").unlink()  # a missing result
    assert modules(checkout.run("dev/runcpu.sh", "--depth=2", option)[1]) == STEPS[1:2]


def test_runcpu_continues_where_it_failed(checkout: Checkout) -> None:
    _, calls = checkout.run("dev/runcpu.sh", code=3, FAIL="base_train")
    assert modules(calls) == STEPS[:4]
    assert modules(checkout.run("dev/runcpu.sh")[1]) == STEPS[3:]


def test_runcpu_resumes_what_was_stopped(checkout: Checkout, tmp_path: Path) -> None:
    """A step that is tried again has the same run id, by which training finds its own checkpoints; others have others.

    What the times of the files say plays no part.
    """

    def run_ids(*options: str, **settings: Any) -> list[str]:
        _, calls = checkout.run("dev/runcpu.sh", *options, **settings)
        lines = (tmp_path / "run_ids").read_text(encoding="utf-8").splitlines()[-len(calls) :]
        for path in (tmp_path / "home").rglob("*"):
            os.utime(path, (1, 1))
        return [line for line, call in zip(lines, calls, strict=True) if "base_train" in call or "mid_train" in call]

    checkout.environment["RUN_IDS"] = str(tmp_path / "run_ids")
    [first] = run_ids(code=3, FAIL="base_train")
    assert first
    assert run_ids(code=3, FAIL="base_train") == [first]
    [other] = run_ids("--depth=2", code=3, FAIL="base_train")  # other settings: a new run
    assert other not in (first, "")
    [same, mid] = run_ids("--depth=2", code=3, FAIL="mid_train")
    assert same == other
    assert mid not in (first, other, "")
    assert run_ids("--depth=2") == [mid]
    again = run_ids("--depth=3")
    assert len({*again, first, other, mid}) == 5
    assert modules(checkout.run("dev/runcpu.sh", "--depth=3")[1]) == []


def test_runcpu_writes_to_the_base_folder_only(checkout: Checkout, tmp_path: Path) -> None:
    here = {"NANOCHAT_BASE_DIR": str(tmp_path / "here")}
    _, calls = checkout.run("dev/runcpu.sh", **here)
    assert "--overwrite" not in calls[0]  # a folder of the user
    assert (tmp_path / "here/base_data/manifest.json").exists()
    assert not (tmp_path / "home").exists()
    _, calls = checkout.run("dev/runcpu.sh", "--overwrite", **here)
    assert modules(calls) == STEPS[:1]
    assert "--overwrite" in calls[0]


def test_runcpu_needs_a_folder(checkout: Checkout) -> None:
    printed, calls = checkout.run("dev/runcpu.sh", "--data=nowhere", code=2)
    assert printed == "error: --data=nowhere: no such folder\n"
    assert not calls


@pytest.mark.parametrize("way", ["--data=DIR", "--data DIR", "absolute", "home", "link", "file"])
def test_runcpu_takes_its_data_from_the_callers_folder(checkout: Checkout, tmp_path: Path, way: str) -> None:
    """In a folder with a space and letters that are not ASCII, and with CDPATH, which would lead `cd` elsewhere."""
    here = tmp_path / "my räume"
    data = here / "ein text"
    for folder in (data, tmp_path / "elsewhere" / "ein text", tmp_path / "home"):
        folder.mkdir(parents=True)
    (data / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "home" / "text").symlink_to(data)
    (here / "link").symlink_to("ein text")
    options, source = {
        "--data=DIR": (["--data=ein text"], data),
        "--data DIR": (["--data", "ein text"], data),
        "absolute": (["--data", str(data)], data),
        "home": (["--data=~/text"], data),
        "link": (["--data=link"], data),
        "file": (["--data", "ein text/a.txt"], data / "a.txt"),
    }[way]
    environment = {"CDPATH": str(tmp_path / "elsewhere"), "NANOCHAT_BASE_DIR": "die basis"}
    printed, calls = checkout.run("dev/runcpu.sh", *options, folder=here, **environment)
    assert modules(calls) == STEPS
    assert calls[0] == f"python -m nanochat.dataset --source {source}"
    assert f"runcpu: everything goes to {here}/die basis\n" in printed
    assert (here / "die basis" / "base_data").is_dir()
    assert modules(checkout.run("dev/runcpu.sh", *options, folder=here, **environment)[1]) == []
    (data / "a.txt").write_text("two", encoding="utf-8")  # also seen through a link
    assert modules(checkout.run("dev/runcpu.sh", *options, folder=here, **environment)[1]) == STEPS[:1]


def test_runcpu_takes_other_files_from_the_callers_folder(checkout: Checkout, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("mine.jsonl", "my mix.toml"):
        (here / name).write_text("x", encoding="utf-8")
    options = ["--mid.conversations", "mine.jsonl", "--sft.mixture=my mix.toml", "--rl.mixture=../here/my mix.toml"]
    options += ["--depth", "2", "--matrix_lr", "-1", "--fp8", "--sft.conversations=none"]
    _, calls = checkout.run("dev/runcpu.sh", *options, folder=here)
    [base] = [call for call in calls if "scripts.base_train" in call]
    assert base.endswith(" --depth=2 --matrix_lr=-1 --fp8")
    [mid] = [call for call in calls if "scripts.mid_train" in call]
    assert f" --conversations={here}/mine.jsonl " in mid
    [sft] = [call for call in calls if "scripts.chat_sft" in call]
    assert f" --mixture={here}/my mix.toml --conversations=none " in sft
    [rl] = [call for call in calls if "scripts.chat_rl" in call]
    assert f" --mixture={here}/../here/my mix.toml " in rl


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mid.conversations=nowhere.jsonl"], ["--mid.conversations=nowhere.jsonl", "no such file"]),
        (["--sft.mixture", "nowhere.toml"], ["--sft.mixture=nowhere.toml", "no such file"]),
        (["--data="], ["empty path"]),
        (["--data", "~nobody-of-this-name/x"], ["no user nobody-of-this-name"]),
        (["my.toml"], ["my.toml", "--help"]),
        (["-x"], ["-x", "--help"]),
    ],
)
def test_runcpu_refuses_an_option(checkout: Checkout, options: list[str], words: list[str]) -> None:
    printed, calls = checkout.run("dev/runcpu.sh", *options, code=2)
    assert calls == []
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    for word in words:
        assert word in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nonsense=1"], ["scripts.base_train: unknown argument --nonsense"]),
        (["--mid.num_epoch=2"], ["scripts.mid_train: unknown argument --num_epoch", "did you mean --num_epochs"]),
        (["--rl.num_samples=1"], ["scripts.chat_rl: num_samples is 1: it must be at least 2"]),
        (["--eval.max_problems=x"], ["scripts.chat_eval", "max_problems", "int"]),
        (["--sft.mixture=bad.toml"], ["scripts.chat_sft: mixture ", "bad.toml"]),
        (["--mid.conversations=bad.jsonl"], ["scripts.mid_train: ", "bad.jsonl, line 1"]),
    ],
)
def test_runcpu_checks_all_options_before_it_begins(
    checkout: Checkout, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    """With the real settings: an option of the last stage is not refused after the training of the others."""
    for name in ("bad.toml", "bad.jsonl"):
        (tmp_path / name).write_text("[", encoding="utf-8")
    environment = {"CHECK": str(ROOT), "PYTHON": sys.executable}
    printed, calls = checkout.run("dev/runcpu.sh", *options, code=2, folder=tmp_path, **environment)
    assert calls == []
    error = printed.splitlines()[-1]
    assert error.startswith("error: ")
    assert "Traceback" not in printed
    for word in words:
        assert word in error


@pytest.mark.parametrize("script", ["dev/runcpu.sh", "speedrun.sh"])
def test_a_base_folder_that_cannot_be(checkout: Checkout, tmp_path: Path, script: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for environment, word in (
        ({"NANOCHAT_BASE_DIR": str(tmp_path / "file" / "below")}, "cannot be written to: set NANOCHAT_BASE_DIR"),
        ({"HOME": ""}, "HOME is not set: set HOME, or NANOCHAT_BASE_DIR"),
        ({"NANOCHAT_BASE_DIR": "~nobody-of-this-name/x"}, "no user nobody-of-this-name"),
    ):
        printed, calls = checkout.run(script, code=2, GPUS="2", **environment)
        assert calls == []
        assert printed.splitlines()[-1].startswith("error: ")
        assert word in printed


@pytest.mark.parametrize(
    ("options", "passed"),
    [
        (["DIR"], []),
        (["--grounded", "DIR"], ["--grounded"]),
        (["--overwrite", "DIR", "--minutes", "5"], ["--overwrite", "--minutes", "5"]),
        (["--minutes=5", "DIR", "--grounded"], ["--minutes=5", "--grounded"]),
    ],
)
def test_train_on_passes_its_options(checkout: Checkout, tmp_path: Path, options: list[str], passed: list[str]) -> None:
    """The documents are those of the caller's folder, wherever they stand among the options."""
    here = tmp_path / "die notizen"
    (here / "DIR").mkdir(parents=True)
    _, calls = checkout.run("train_on.sh", *options, folder=here)
    assert calls[-1] == f"python -m scripts.train_on {here / 'DIR'} {' '.join(passed)}".rstrip()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "name the folder of your documents"),
        (["nowhere"], "nowhere: no such folder or file"),
        ([".", ".."], "name one folder or file"),
        ([".", "--minutes"], "--minutes needs a value"),
    ],
)
def test_train_on_refuses(checkout: Checkout, options: list[str], words: str) -> None:
    printed, calls = checkout.run("train_on.sh", *options, code=2)
    assert words in printed.splitlines()[-1]
    assert calls == []


@pytest.mark.parametrize("script", ["dev/runcpu.sh", "speedrun.sh", "dev/test_versions.sh", "train_on.sh"])
def test_help(tmp_path: Path, script: str) -> None:
    """From another folder, without a checkout that is set up."""
    relative = os.path.relpath(ROOT / script, tmp_path)
    done = subprocess.run(["bash", relative, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == ""
    assert f"bash {script}" in done.stdout
    assert "set -" not in done.stdout


def test_files_of_options_are_known_to_the_scripts() -> None:
    """paths.sh names the options that are files: those that the stages' settings declare as paths."""
    text = (ROOT / "dev/paths.sh").read_text(encoding="utf-8")
    for stage in ("base_train", "mid_train", "chat_sft", "chat_rl", "chat_eval", "tok_train"):
        config = importlib.import_module(f"scripts.{stage}").Config
        for field in dataclasses.fields(config):
            is_path = field.metadata["names"] == "path" or "Path" in str(field.type)
            assert (f"--*{field.name}=*" in text) == is_path, field.name


def test_speedrun_refuses_a_settings_file(checkout: Checkout) -> None:
    printed, calls = checkout.run("speedrun.sh", "my.toml", code=2, GPUS="2")
    assert calls == []
    assert printed.startswith("error: my.toml: give options")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "environment", "word"),
    [
        (["--nonsense=1"], {}, "scripts.base_train: unknown argument --nonsense"),
        ([], {"DEPTH": "x"}, "scripts.base_train: argument --depth"),
        ([], {"SHARDS": "0"}, "nanochat.dataset: "),
        ([], {"WANDB_RUN": "a/b"}, "scripts.base_train: run is 'a/b'"),
    ],
)
def test_speedrun_checks_its_options_before_it_begins(
    checkout: Checkout, options: list[str], environment: dict[str, str], word: str
) -> None:
    environment |= {"GPUS": "2", "CHECK": str(ROOT), "PYTHON": sys.executable}
    printed, calls = checkout.run("speedrun.sh", *options, code=2, **environment)
    assert calls == []
    assert word in printed.splitlines()[-1]
    assert "Traceback" not in printed


def test_speedrun_without_a_gpu_passes_the_callers_folder_on(checkout: Checkout, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "text").mkdir(parents=True)
    _, calls = checkout.run("speedrun.sh", "--data", "text", folder=here, NANOCHAT_BASE_DIR="base")
    assert calls[0] == f"python -m nanochat.dataset --source {here}/text"
    assert (here / "base" / "base_data").is_dir()


def test_speedrun_without_a_gpu(checkout: Checkout) -> None:
    printed, calls = checkout.run("speedrun.sh", "--num_iterations=7")
    assert "no CUDA GPU" in printed
    assert modules(calls) == STEPS
    assert calls[3].endswith(" --num_iterations=7")


def test_speedrun_with_gpus_that_torch_cannot_use(checkout: Checkout, tmp_path: Path) -> None:
    """The driver counts eight and torch has none available: it stops in one line, and trains nothing on the CPU."""
    write_torch(tmp_path, counted=8, usable=False, error="The NVIDIA driver on your system is too old (found 12020).")
    program(tmp_path / "bin/nvidia-smi", FAKE_SMI)
    environment = {
        "NO_CUDA": "1", "PYTHON": sys.executable, "PYTHONPATH": f"{tmp_path}:{ROOT}", "GPUS": "8",
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
    }  # fmt: skip
    printed, calls = checkout.run("speedrun.sh", code=2, **environment)
    assert calls == []
    assert printed.count("\n") == 1
    assert "torch 9.9.9 (for CUDA 13.0) cannot use them with driver 535.104.05: The NVIDIA driver" in printed
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("script", "depth", "shards"), [("speedrun.sh", 20, 240), ("run1000.sh", 32, 800)])
def test_speedrun_with_gpus(checkout: Checkout, tmp_path: Path, script: str, depth: int, shards: int) -> None:
    environment = {"GPUS": "2", "NANOCHAT_BASE_DIR": str(tmp_path / "base"), "WANDB_RUN": "mine", "BUNDLE": "1"}
    _, calls = checkout.run(script, "--seed=1", **environment)
    assert calls[0] == "python -m nanochat.dataset -n 8"
    assert f"python -m nanochat.dataset -n {shards}" in calls[1:]
    steps = [*STEPS[:5], "scripts.base_eval", *STEPS[5:]]
    assert set(modules(calls)) == {*steps, "dev.gen_synthetic_data", "dev.list_words"}
    on_gpus = [call for call in calls if call.startswith("torchrun")]
    assert modules(on_gpus) == steps[3:]
    start = "torchrun --standalone --nproc_per_node=2 -m "
    assert all(call.startswith(start) and call.split()[6] == "--device=cuda" for call in on_gpus), on_gpus
    assert on_gpus[0] == (
        f"{start}scripts.base_train -- --device=cuda "
        f"--depth={depth} --target_param_data_ratio=20 --save_every=1000 --keep_last=2 --run=mine --seed=1"
    )
    assert calls.index("python -m scripts.base_eval --download_only --allow_missing") < calls.index(on_gpus[0])
    assert calls[-1] == "python -m nanochat.report"

    _, calls = checkout.run(script, "--seed=1", **environment)
    assert {call for call in calls if "nanochat.dataset" not in call} == {
        "python -m scripts.base_eval --download_only --allow_missing",
        "python -m dev.gen_synthetic_data",
        "python -m dev.list_words",
        "python -m nanochat.report",
    }  # these are called each time, and skip what is done themselves


def test_speedrun_without_the_tasks_of_core(checkout: Checkout, tmp_path: Path) -> None:
    """base_eval measures nothing and fails nothing. The next run tries it again, and only it."""
    environment = {"GPUS": "2", "NANOCHAT_BASE_DIR": str(tmp_path / "base")}
    _, calls = checkout.run("speedrun.sh", **environment)
    assert "scripts.chat_rl" in modules(calls)
    _, calls = checkout.run("speedrun.sh", **environment, BUNDLE="1")
    assert modules([call for call in calls if call.startswith("torchrun")]) == ["scripts.base_eval"]


def test_speedrun_stops_when_the_download_fails(checkout: Checkout, tmp_path: Path) -> None:
    base = str(tmp_path / "base")
    _, calls = checkout.run("speedrun.sh", code=3, GPUS="2", NANOCHAT_BASE_DIR=base, FAIL="-n 240")
    assert "scripts.base_train" not in modules(calls)


# --- setting up -------------------------------------------------------------------------------------------------------

FAKE_UV = """#!/bin/bash
echo "uv $*" >>"$CALLS"
[ -z "$FAIL" ] || case "$*" in *"$FAIL"*) echo "uv could not"; exit 1 ;; esac
sleep "${SLOW:-0}"
case "$*" in *--editable*) touch nanochat/tokenization/_rustbpe.abi3.so ;; esac
"""


@pytest.fixture
def bare(tmp_path: Path) -> Checkout:
    """A fresh checkout, on a machine with a real Python, and a uv and a cargo that only record their calls."""
    checkout = Checkout(tmp_path)
    sources = [f"{crate}/{name}" for crate in ("rustbpe", "rustgpt") for name in ("Cargo.toml", "src/lib.rs")]
    for name in ("pyproject.toml", "constraints.txt", *sources):
        (checkout.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout.folder / name)
    (checkout.folder / "nanochat/tokenization").mkdir(parents=True)
    program(tmp_path / "bin/uv", FAKE_UV)
    program(tmp_path / "bin/cargo", "#!/bin/bash\n")
    checkout.environment |= {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PYTHON": sys.executable}
    return checkout


def installs(calls: list[str]) -> list[str]:
    """The kind of each installation among the calls of uv."""
    return ["dependencies" if "--constraint" in call else "extension" for call in calls]


def test_setup_once(bare: Checkout) -> None:
    printed, calls = bare.run("dev/setup.sh")
    assert installs(calls) == ["dependencies", "extension"]
    assert printed.endswith("setup: done\n")
    assert (bare.folder / ".venv/bin/python").exists()
    assert bare.run("dev/setup.sh") == ("setup: nothing to do\n", [])

    (bare.folder / "constraints.txt").write_text("torch==2.9.0\n", encoding="utf-8")
    assert installs(bare.run("dev/setup.sh")[1]) == ["dependencies", "extension"]
    (bare.folder / "nanochat/tokenization/_rustbpe.abi3.so").unlink()
    assert installs(bare.run("dev/setup.sh")[1]) == ["dependencies", "extension"]
    assert bare.run("dev/setup.sh")[1] == []


def test_setup_when_the_dependencies_fail(bare: Checkout) -> None:
    printed, _ = bare.run("dev/setup.sh", code=1, FAIL="--constraint")
    assert "run this again" in printed
    printed, calls = bare.run("dev/setup.sh")  # created again, because it may be incomplete
    assert "making .venv" in printed
    assert installs(calls) == ["dependencies", "extension"]

    (bare.folder / "constraints.txt").write_text("torch==2.9.0\n", encoding="utf-8")
    (bare.folder / ".venv/mine").touch()
    bare.run("dev/setup.sh", code=1, FAIL="--constraint")
    _, calls = bare.run("dev/setup.sh")  # was complete before: kept, and reinstalled
    assert "--reinstall" in calls[0]
    assert (bare.folder / ".venv/mine").exists()


def test_setup_without_rust(bare: Checkout, tmp_path: Path) -> None:
    printed, _ = bare.run("dev/setup.sh", FAIL="--editable")  # with cargo, a failed build is tried again next time
    assert "Hugging Face trainer" in printed
    assert "uv could not" in printed
    assert installs(bare.run("dev/setup.sh", FAIL="--editable")[1]) == ["dependencies", "extension"]

    (tmp_path / "bin/cargo").unlink()  # without cargo it is not tried again until there is one
    printed, _ = bare.run("dev/setup.sh", FAIL="--editable")
    assert "no working cargo" in printed
    assert bare.run("dev/setup.sh") == ("setup: nothing to do\n", [])
    program(tmp_path / "bin/cargo", "#!/bin/bash\n")
    assert bare.run("dev/setup.sh")[0].endswith("setup: done\n")


def test_two_setups_at_once(bare: Checkout) -> None:
    environment = bare.environment | {"SLOW": "1"}
    first, second = (
        subprocess.Popen(["bash", "dev/setup.sh"], cwd=bare.folder, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    printed = first.communicate(timeout=60)[0] + second.communicate(timeout=60)[0]
    assert (first.returncode, second.returncode) == (0, 0)
    assert "waiting for another setup" in printed
    assert printed.count("setup: done") == 1
    assert printed.count("setup: nothing to do") == 1


def test_setup_without_a_home_and_from_another_folder(bare: Checkout, tmp_path: Path) -> None:
    """A relative interpreter is the caller's; HOME is not needed; an option is refused."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "python").symlink_to(sys.executable)
    del bare.environment["HOME"]
    printed, _ = bare.run("dev/setup.sh", folder=tmp_path / "here", PYTHON="./python", CDPATH=str(tmp_path))
    assert printed.endswith("setup: done\n")
    printed, calls = bare.run("dev/setup.sh", "--fresh", code=2)
    assert printed == "error: --fresh: dev/setup.sh has no options; $PYTHON selects the interpreter\n"
    assert calls == []


def test_setup_without_a_python(bare: Checkout, tmp_path: Path) -> None:
    program(tmp_path / "bin/old", "#!/bin/bash\nexit 1\n")
    for tool in ("bash", "dirname", "cat", "cksum", "ls", "find", "sort"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    printed, _ = bare.run("dev/setup.sh", code=1, PYTHON="old", PATH=f"{tmp_path}/bin")
    assert "no Python of at least 3.10" in printed


# --- real scripts -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runcpu_for_real(tmp_path: Path, forker: Forker) -> None:
    """The scripts accept all flags of runcpu.sh: a tiny model on a tiny text."""
    checkout = Checkout(tmp_path)
    program(checkout.folder / "dev/setup.sh", "")
    program(checkout.folder / ".venv/bin/python", forker.python.read_text(encoding="utf-8"))
    text = tmp_path / "text"
    text.mkdir()
    for number in range(40):
        story = f"Story {number}. The fox saw {number} hens by the river, and the hens saw the fox. " * 30
        (text / f"{number}.txt").write_text(story, encoding="utf-8")
    small = ["--depth=1", "--max_seq_len=256", "--device_batch_size=2", "--total_batch_size=512", "--num_iterations=3"]
    for stage in ("mid", "sft"):
        small += [f"--{stage}.total_batch_size=512", f"--{stage}.num_iterations=2", f"--{stage}.compile=off"]
    small += ["--rl.num_iterations=1", "--rl.examples_per_step=2", "--rl.num_samples=2", "--rl.eval_examples=2"]
    small += ["--rl.max_new_tokens=8", "--eval.max_new_tokens=8", "--eval.max_problems=2"]
    environment = {"NANOCHAT_BASE_DIR": str(tmp_path / "base"), "NANOCHAT_DTYPE": "float32", "OMP_NUM_THREADS": "1"}
    command = ["dev/runcpu.sh", f"--data={text}", *small, "--eval_tokens=64", "--sample_every=-1", "--compile=off"]
    printed, _ = checkout.run(*command, **environment)
    assert "bits per byte" in printed
    assert str(tmp_path / "base/report/report.md") in printed
    assert (tmp_path / "base/report/report.md").exists()
    assert checkout.run(*command, **environment)[0].count("done already") == len(STEPS)
