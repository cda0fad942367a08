"""Stopping a run in every way it can be stopped, and resuming it: bit for bit the same as a run never stopped.

The runs are those of base_train, in real processes: a pool of them, which import torch once and take one run after the
other. Run as a program, `python tests/training/test_stop_and_resume.py`, this file is one process of the pool. It reads
its runs from stdin, a line of JSON each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
STEPS, T, ROWS = 8, 32, 6  # of a run; tokens of a row; rows of a step
RUN = {
    "depth": 1,
    "head_dim": 32,
    "max_seq_len": T,
    "num_iterations": STEPS,
    "total_batch_size": T * ROWS,
    "device_batch_size": 1,
    "eval_every": 3,
    "eval_tokens": 100,
    "sample_every": -1,
    "compile": "off",
    "device": "cpu",
}
LIMIT = 150  # seconds: what takes longer hangs


# --- a process of the pool -------------------------------------------------------------------------------------------


def _serve() -> None:
    """Take runs from stdin; answer each with a line of JSON on the original stdout."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of a run that bypasses sys.stdout goes to the log

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    from scripts import base_train  # noqa: F401  (forks need not import anything)

    for line in sys.stdin:
        job = json.loads(line)
        if job.get("fork"):  # a run that will be killed
            child = os.fork()
            if child == 0:
                answers.write = lambda text: len(text)  # type: ignore[method-assign]
                _run(job, answer)
                os._exit(0)
            answer(died=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        else:
            answer(**_run(job, answer))


def _run(job: dict[str, Any], answer: Any) -> dict[str, Any]:
    """Call `python -m scripts.base_train` with the job's arguments; return its output, losses and training rows."""
    from nanochat import checkpoint_manager, configurator, train
    from nanochat.training import events, setup
    from nanochat.training import log as train_log
    from scripts import base_train

    os.environ.update(job["env"])
    result: dict[str, Any] = {"losses": [], "rows": []}
    plain_step, plain_log, plain_write = train.step, train_log.TrainLog.__call__, checkpoint_manager.write_tensors
    plain_rename, plain_bpb, plain_warm_up = os.rename, events.bits_per_byte, setup.warm_up

    def step(model: Any, optimizer: Any, micro_batches: Any, rates: Any, stop: Any) -> Any:
        outcome = plain_step(model, optimizer, micro_batches, rates, stop)
        time.sleep(job.get("pause", 0))
        if len(result["losses"]) < 100:
            result["losses"].append(outcome[0])
            result["rows"].append(
                [
                    [*row.tolist(), int(last)]
                    for batch in micro_batches
                    for row, last in zip(batch.inputs, batch.targets[:, -1], strict=True)
                ]
            )
        return outcome

    def log(self: Any, state: Any, metrics: Any) -> None:
        plain_log(self, state, metrics)
        if "loss" in metrics:
            if state.step == job.get("announced_step"):
                answer(step=state.step)
            for number in job.get("signals", {}).get(str(state.step), []):
                signal.raise_signal(number)

    def interrupted(plain: Any, name: str) -> Any:
        calls = []

        def call(*args: Any) -> Any:
            calls.append(1)
            if job.get("interrupt") == [name, len(calls)]:
                signal.raise_signal(signal.SIGINT)
            return plain(*args)

        return call

    def dies(plain: Any, name: str, torn: bool = False) -> Any:
        calls = []

        def call(first: Any, second: Any) -> Any:
            calls.append(1)
            if job.get("die") == [name, len(calls)]:
                if torn:
                    plain(first, second)
                    os.truncate(second, os.path.getsize(second) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(first, second)

        return call

    patches = [
        (train, "step", step),
        (train_log.TrainLog, "__call__", log),
        (train_log, "MAX_HISTORY_POINTS", 3),  # so that a point of the history is the mean of two steps
        (checkpoint_manager, "write_tensors", dies(plain_write, "write", torn=True)),
        (os, "rename", dies(plain_rename, "rename")),
        (events, "bits_per_byte", interrupted(plain_bpb, "evaluation")),
        (setup, "warm_up", interrupted(plain_warm_up, "compile")),
    ]
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for where, name, value in patches:
            patch.setattr(where, name, value)
        patch.setattr(sys, "argv", ["base_train", *job["argv"]])
        if job.get("largest_file"):
            stack.enter_context(_largest_file(job["largest_file"]))
        out, err = io.StringIO(), io.StringIO()

        def main(config: Any) -> None:
            result["history"] = base_train.main(config).history

        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                configurator.cli(base_train.Config, main, "A run.")
                code = 0
            except SystemExit as leaving:
                code = int(leaving.code or 0)
            finally:
                import torch.distributed as dist

                if dist.is_initialized():
                    dist.destroy_process_group()
    return {**result, "code": code, "out": out.getvalue(), "err": err.getvalue()}


@contextlib.contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Context in which no file can exceed this size. The error is EFBIG, where a full disk gives ENOSPC."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- the pool, as the tests use it -----------------------------------------------------------------------------------


class Process:
    """One process of the pool."""

    def __init__(self, folder: Path, name: str) -> None:
        self.log = folder / f"{name}.log"
        with open(self.log, "w", encoding="utf-8") as log:
            self.popen = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.busy = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.answers.put(json.loads(line))
        self.answers.put({"dead": True})

    def send(self, job: dict[str, Any]) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(job) + "\n")
        self.popen.stdin.flush()
        self.busy = True

    def answer(self) -> dict[str, Any]:
        try:
            message = self.answers.get(timeout=LIMIT)
        except queue.Empty:
            message = {"dead": True}
        assert "dead" not in message, f"hangs or died: {self.log.read_text(encoding='utf-8')[-3000:]}"
        self.busy = "step" in message
        return message

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


@dataclass
class Pool:
    """Processes that run base_train. Each is started when it is first needed."""

    folder: Path
    processes: dict[str, Process] = field(default_factory=dict)

    def get(self, name: str) -> Process:
        if name in self.processes and (self.processes[name].popen.poll() is not None or self.processes[name].busy):
            self.processes.pop(name).close()  # dead, or still in use by a test that failed
        if name not in self.processes:
            self.processes[name] = Process(self.folder, name)
        return self.processes[name]

    def start(self, base: Path, settings: dict[str, Any], jobs: list[dict[str, Any]], name: str = "") -> list[Process]:
        """Start a run with one process per job. A job adds to the settings that all processes have in common."""
        argv = [f"--{key}={value}" for key, value in (RUN | settings).items()]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank, job in enumerate(jobs):
            env = {
                "NANOCHAT_BASE_DIR": base, "NANOCHAT_DTYPE": "float32", "RANK": rank, "LOCAL_RANK": rank,
                "WORLD_SIZE": len(jobs), "LOCAL_WORLD_SIZE": len(jobs), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                "TORCHINDUCTOR_CACHE_DIR": self.folder / "compiled", "TORCHINDUCTOR_COMPILE_THREADS": 1,
            }  # fmt: skip
            processes.append(self.get(name or str(rank)))
            processes[-1].send({"argv": argv, "env": {key: str(value) for key, value in env.items()}, **job})
        return processes

    def run(self, base: Path, jobs: list[dict[str, Any]] | int = 1, name: str = "", **settings: Any) -> list[Any]:
        """Run base_train to its end; return the result of each process."""
        jobs = [{}] * jobs if isinstance(jobs, int) else jobs
        return [process.answer() for process in self.start(base, settings, jobs, name)]


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("pool"))
    yield pool
    for process in pool.processes.values():
        process.close()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder with a tokenizer and 40 small documents: an epoch is less than half a run."""
    from nanochat.data.shards import write_dataset
    from nanochat.tokenizer import RustBPETokenizer

    base = tmp_path_factory.mktemp("prepared")
    documents = [f"the {'cat dog hen'.split()[i % 3]} number {i * i} " + "sat on the mat " * (i % 4) for i in range(40)]
    write_dataset(documents, ["the dog sat on the mat", "number 17"] * 3, base / "base_data", source="test")
    RustBPETokenizer.train_from_iterator(iter(documents), 300).save(base / "tokenizer")
    return base


@pytest.fixture
def base(prepared: Path, tmp_path: Path) -> Path:
    """A copy of `prepared` for one test."""
    return Path(shutil.copytree(prepared, tmp_path / "base"))


@dataclass(frozen=True)
class Reference:
    """A run that was never stopped."""

    base: Path
    results: list[Any]  # of its processes


@pytest.fixture(scope="session")
def reference(pool: Pool, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Function `reference(world_size, **settings)` that returns such a run, made once."""
    references: dict[Any, Reference] = {}

    def get(world_size: int, **settings: Any) -> Reference:
        key = (world_size, *sorted(settings.items()))
        if key not in references:
            base = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("reference") / "base"))
            results = pool.run(base, world_size, **{"save_every": 3, **settings})
            assert codes(results) == [0] * world_size, results[0]["err"]
            references[key] = Reference(base, results)
        return references[key]

    return get


def checkpoints(base: Path) -> Path:
    return base / "base_checkpoints" / "d1"


def saved_steps(base: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in checkpoints(base).iterdir())


def contents(base: Path, step: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Weights, optimizer state and loop state of a checkpoint; the loop state without measured times and signals."""
    from safetensors.torch import load_file

    path = checkpoints(base) / f"step_{step:06d}"
    loop = json.loads((path / "meta.json").read_text(encoding="utf-8"))["loop"]
    assert loop.pop("seconds") > 0
    del loop["stopped"]
    loop["history"] = without_speed(loop["history"])
    return load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors"), loop


def without_speed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in history]


def assert_same_end(base: Path, other: Path, step: int = STEPS, history: bool = True) -> None:
    """Weights, optimizer and loop state after a step are the same, bit for bit."""
    *tensors, loop = contents(base, step)
    *expected_tensors, expected_loop = contents(other, step)
    if not history:
        del loop["history"], expected_loop["history"]
    assert loop == expected_loop
    for state, expected in zip(tensors, expected_tensors, strict=True):
        assert state.keys() == expected.keys()
        assert [name for name in state if not torch.equal(state[name], expected[name])] == []


def assert_continues(first: list[Any], second: list[Any], whole: Reference) -> None:
    """A stopped and a resumed run together have the rows, losses and history of the whole run."""
    for stopped, resumed, expected in zip(first, second, whole.results, strict=True):
        assert stopped["losses"] + resumed["losses"] == expected["losses"]
        assert stopped["rows"] + resumed["rows"] == expected["rows"]
    assert without_speed(second[0]["history"]) == without_speed(whole.results[0]["history"])


def codes(results: list[Any]) -> list[int]:
    """The exit codes of the processes of a run."""
    return [result["code"] for result in results]


# --- the same, bit for bit -------------------------------------------------------------------------------------------


# Each signal on one process and on two, and with one of them each step with each number of processes. The signal comes
# after the step, and one more is taken; steps 3 and 6 are also evaluated.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "signal_number", "stop_at"),
    [
        *((1, number, 2) for number in STOP_SIGNALS),
        *((2, number, 6) for number in STOP_SIGNALS),
        (1, signal.SIGTERM, 6),
        (2, signal.SIGTERM, 2),
    ],
)
def test_signal(pool: Pool, base: Path, reference: Any, world_size: int, signal_number: int, stop_at: int) -> None:
    whole = reference(world_size)
    code = 128 + signal_number
    first = pool.run(base, [{"signals": {str(stop_at): [signal_number]}}] * world_size)
    assert codes(first) == [code] * world_size
    assert f"Stopped at step {stop_at + 1} of 8" in first[0]["out"]
    assert "--resume" in first[0]["out"]
    assert saved_steps(base) == [stop_at + 1]
    second = pool.run(base, world_size, resume=True)
    assert codes(second) == [0] * world_size
    assert_continues(first, second, whole)
    assert_same_end(base, whole.base)
    assert json.loads((base / "report" / "base_train.json").read_text(encoding="utf-8"))["seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("step", [3, 6])
def test_from_a_step(pool: Pool, base: Path, reference: Any, world_size: int, step: int) -> None:
    """--resume_from_step after a finished run: the later checkpoints are written again, with equal content."""
    whole = reference(world_size)
    shutil.copytree(whole.base / "base_checkpoints", base / "base_checkpoints")
    results = pool.run(base, world_size, resume_from_step=step, save_every=3)
    assert [result["losses"] for result in results] == [expected["losses"][step:] for expected in whole.results]
    assert saved_steps(base) == [3, 6, 8]
    assert_same_end(base, whole.base, 6)
    assert_same_end(base, whole.base)
    assert without_speed(results[0]["history"]) == without_speed(whole.results[0]["history"])


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_compiled(pool: Pool, base: Path, reference: Any, world_size: int) -> None:
    whole = reference(world_size, compile="on")
    assert "Compiling failed" not in whole.results[0]["out"]
    first = pool.run(base, [{"signals": {"3": [signal.SIGTERM]}}] * world_size, compile="on")
    second = pool.run(base, world_size, compile="on", resume=True)
    assert "Compiling failed" not in second[0]["out"]
    assert_continues(first, second, whole)
    assert_same_end(base, whole.base)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(pool: Pool, base: Path, reference: Any) -> None:
    """As README promises for CUDA: the same rows; losses equal up to rounding, here of TF32 (10 bits) over 8 steps."""
    whole = reference(1, device="cuda")
    first = pool.run(base, [{"signals": {"3": [signal.SIGTERM]}}], device="cuda")
    second = pool.run(base, device="cuda", resume=True)
    assert (codes(first), codes(second)) == ([143], [0])
    assert first[0]["rows"] + second[0]["rows"] == whole.results[0]["rows"]
    np.testing.assert_allclose(first[0]["losses"] + second[0]["losses"], whole.results[0]["losses"], rtol=2e-3)


# The second save of the run, that of step 6: torn files, whole files without their final name, and after the rename.
@pytest.mark.slow
@pytest.mark.parametrize("moment", [["write", 3], ["write", 4], ["rename", 2], ["rename", 3]])
def test_killed_while_saving(pool: Pool, base: Path, reference: Any, moment: list[Any]) -> None:
    whole = reference(1)
    [dead] = pool.run(base, [{"fork": True, "die": moment}], name="forks", save_every=3, keep_last=1)
    assert dead == {"died": -signal.SIGKILL}
    step = 6 if moment == ["rename", 3] else 3  # the third rename hides the checkpoint to be removed
    [result] = pool.run(base, resume=True, save_every=3, keep_last=1)
    assert result["losses"] == whole.results[0]["losses"][step:]
    assert_same_end(base, whole.base)
    assert [path.name for path in checkpoints(base).iterdir()] == ["step_000008"]


@pytest.mark.slow
def test_one_of_two_killed(pool: Pool, base: Path, reference: Any) -> None:
    """kill -9 of the process that does not save ends the other one, too; the run resumes from the last checkpoint."""
    whole = reference(2)
    jobs: list[dict[str, Any]] = [{}, {"signals": {"7": [signal.SIGKILL]}}]
    processes = pool.start(base, {"save_every": 3}, jobs)
    processes[1].popen.wait(LIMIT)
    processes[0].popen.wait(LIMIT)  # by an exception of gloo; torchrun would end it, too
    results = pool.run(base, 2, resume=True)
    assert [result["losses"] for result in results] == [expected["losses"][6:] for expected in whole.results]
    assert_same_end(base, whole.base)


# --- another number of processes -------------------------------------------------------------------------------------


def naive_rows(base: Path, count: int) -> np.ndarray:
    """The first rows of the run, (count, T + 1), computed in the simplest way: all epochs as one list of tokens."""
    import pyarrow.parquet as pq

    from nanochat.tokenizer import Tokenizer

    manifest = json.loads((base / "base_data" / "manifest.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_directory(base / "tokenizer")
    epoch: list[int] = []
    for name in manifest["train"]:
        for text in pq.read_table(base / "base_data" / name).column("text").to_pylist():
            epoch += [tokenizer.get_bos_token_id(), *tokenizer.encode(text)]
    assert len(epoch) < count * T / 2, "the run must pass the end of the data more than once"
    stream = epoch * (count * T // len(epoch) + 2)
    return np.array([stream[i * T : (i + 1) * T + 1] for i in range(count)])


def step_rows(results: list[Any], step: int) -> list[tuple[int, ...]]:
    """The rows of a step, of all processes, sorted."""
    return sorted(tuple(row) for result in results for row in result["rows"][step])


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "batch_size"), [(1, 3), (1, 2), (3, 2), (3, 1)])
def test_another_number_of_processes(pool: Pool, base: Path, reference: Any, processes: int, batch_size: int) -> None:
    """Written by 2 processes, resumed by 1 and by 3: no document skipped or repeated, losses equal to rounding.

    Sums of losses and gradients are taken in another order, so float32 rounds differently: by 6e-8 of a number, which
    five more steps at high learning rates amplify. 1e-6 of a loss is allowed; 1.2e-7, its last bit, was seen.
    """
    whole = reference(2)
    first = pool.run(base, [{"signals": {"2": [signal.SIGTERM]}}] * 2)
    second = pool.run(base, processes, device_batch_size=batch_size, resume=True)
    expected = naive_rows(base, STEPS * ROWS).reshape(STEPS, ROWS, T + 1)
    for step in range(STEPS):
        rows = step_rows(first, step) if step < 3 else step_rows(second, step - 3)
        assert rows == sorted(map(tuple, expected[step].tolist()))
    for result in second:
        np.testing.assert_allclose(result["losses"], whole.results[0]["losses"][3:], rtol=1e-6)
    loop, expected_loop = contents(base, STEPS)[2], contents(whole.base, STEPS)[2]
    for key in ("step", "cursor", "progress"):
        assert loop[key] == expected_loop[key]
    assert loop["cursor"]["epoch"] >= 2


# --- signals at awkward moments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first_rank", "second_rank", "stopped_after"),
    [
        ({}, {"2": [signal.SIGTERM]}, 3),
        ({"2": [signal.SIGTERM]}, {}, 3),
        ({"3": [signal.SIGTERM]}, {"2": [signal.SIGTERM]}, 3),
        ({"2": [signal.SIGTERM, signal.SIGTERM]}, {"2": [signal.SIGTERM], "3": [signal.SIGTERM]}, 3),
        ({"7": [signal.SIGINT]}, {}, 8),
    ],
    ids=["only the second", "only the first", "one after the other", "twice", "in the last step"],
)
def test_signals_of_two_processes(
    pool: Pool, base: Path, reference: Any, first_rank: Any, second_rank: Any, stopped_after: int
) -> None:
    """Both stop after the same step, with a checkpoint, whichever of them received a signal, and when."""
    whole = reference(2)
    first = pool.run(base, [{"signals": first_rank}, {"signals": second_rank}])
    assert set(codes(first)) <= {130, 143}
    assert [len(result["losses"]) for result in first] == [stopped_after] * 2
    assert saved_steps(base) == [stopped_after]
    assert not (base / "report" / "base_train.json").exists()
    second = pool.run(base, 2, resume=True)
    assert_continues(first, second, whole)
    assert_same_end(base, whole.base)


@pytest.mark.parametrize("delay", [0.0, 0.03])
def test_signals_from_outside(pool: Pool, base: Path, delay: float) -> None:
    """SIGTERM as a launcher sends it, to one process and then to the other, somewhere in a step."""
    jobs = [{"announced_step": 2, "pause": 0.1}] * 2  # the pause follows the check for signals: none comes too late
    processes = pool.start(base, {"num_iterations": 100_000, "eval_every": -1}, jobs)
    assert [process.answer() for process in processes] == [{"step": 2}] * 2
    for process in reversed(processes):
        process.popen.send_signal(signal.SIGTERM)
        time.sleep(delay)
    results = [process.answer() for process in processes]
    assert codes(results) == [143, 143]
    assert len(results[0]["losses"]) == len(results[1]["losses"])
    [step] = saved_steps(base)
    assert f"Stopped at step {step} of 100000" in results[0]["out"]


def test_ctrl_c_in_an_evaluation_during_training(pool: Pool, base: Path, reference: Any) -> None:
    """The evaluation ends, one more step is taken, and the checkpoint is saved."""
    whole = reference(1)
    first = pool.run(base, [{"interrupt": ["evaluation", 1]}])
    assert first[0]["code"] == 130
    assert saved_steps(base) == [4]
    assert_continues(first, pool.run(base, resume=True), whole)
    assert_same_end(base, whole.base)


def test_ctrl_c_in_the_last_evaluation(pool: Pool, base: Path, reference: Any) -> None:
    """Training is complete and saved, but the exit code stops a script of several stages. Resuming evaluates."""
    whole = reference(1)
    first = pool.run(base, [{"interrupt": ["evaluation", 3]}])
    assert first[0]["code"] == 130
    assert not (base / "report" / "base_train.json").exists()
    second = pool.run(base, resume=True)
    assert second[0]["code"] == 0
    assert_continues(first, second, whole)
    assert (base / "report" / "base_train.json").exists()


@pytest.mark.slow
def test_ctrl_c_while_compiling(pool: Pool, base: Path) -> None:
    [result] = pool.run(base, [{"interrupt": ["compile", 1]}], compile="on")
    assert (result["code"], result["err"]) == (130, "interrupted\n")
    assert result["losses"] == []


def test_second_ctrl_c_stops_at_once(pool: Pool, base: Path) -> None:
    [result] = pool.run(base, [{"signals": {"4": [signal.SIGINT, signal.SIGINT]}}], save_every=3)
    assert (result["code"], result["err"]) == (130, "interrupted\n")
    assert saved_steps(base) == [3]


# --- resuming from what is on disk -----------------------------------------------------------------------------------


def test_a_finished_run(pool: Pool, base: Path, reference: Any) -> None:
    """Nothing is trained or saved; the evaluation and the report are repeated, with equal results."""
    whole = reference(1)
    shutil.copytree(whole.base / "base_checkpoints", base / "base_checkpoints")
    [result] = pool.run(base, resume=True)
    assert (result["code"], result["losses"]) == (0, [])
    assert "100.0% of the run done" in result["out"]
    section, expected = (
        json.loads((folder / "report" / "base_train.json").read_text(encoding="utf-8")) for folder in (base, whole.base)
    )
    assert section["metrics"] == expected["metrics"]
    assert section["seconds"] == expected["seconds"], "the time of the whole run, not of its last part"
    assert section["curves"] == expected["curves"]
    assert_same_end(base, whole.base)
    [result] = pool.run(base, resume=True, num_iterations=STEPS + 2)
    assert "num_iterations: 8 -> 10" in result["out"]
    assert (result["code"], len(result["losses"])) == (0, 2)


def test_a_new_run_in_an_old_folder(pool: Pool, base: Path, reference: Any) -> None:
    """The checkpoint of the highest step is that of another run, which stays: the last written one is resumed."""
    shutil.copytree(reference(1).base / "base_checkpoints", base / "base_checkpoints")
    (checkpoints(base) / "step_000008").rename(checkpoints(base) / "step_000009")
    earlier = set(saved_steps(base))
    [first] = pool.run(base, [{"signals": {"1": [signal.SIGINT]}}], keep_last=1, matrix_lr=0.01)
    assert first["out"].count("NOTICE: ") == 1
    assert "of an earlier run, the last of step 8: this run begins anew" in first["out"]
    assert set(saved_steps(base)) == earlier | {2}
    [second] = pool.run(base, resume=True, keep_last=1, matrix_lr=0.01)
    assert "of an earlier run" not in second["out"]
    assert "step_000002, 25.0%" in second["out"]
    assert "Setting changed" not in second["out"]
    assert (len(first["losses"]), len(second["losses"])) == (2, 6)
    assert set(saved_steps(base)) == earlier | {8}


def _other_tokenizer(base: Path) -> None:
    from nanochat.tokenizer import RustBPETokenizer

    RustBPETokenizer.train_from_iterator(iter(["other words altogether, and more of them"]), 300).save(
        base / "tokenizer"
    )


def _other_data(base: Path) -> None:
    from nanochat.data.shards import write_dataset

    write_dataset(["a text", "another"], ["a third"], base / "base_data", source="test")


def _torn(base: Path) -> None:
    path = checkpoints(base) / "step_000008" / "optimizer.safetensors"
    os.truncate(path, path.stat().st_size - 5)


def _another_format(base: Path) -> None:
    path = checkpoints(base) / "step_000008" / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "format": 0}), encoding="utf-8")


def _none(base: Path) -> None:
    shutil.rmtree(checkpoints(base))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (_none, {}, "no checkpoint in"),
        (_none, {"resume_from_step": 3}, "no checkpoint in"),
        (lambda _: None, {"resume_from_step": 5}, "there are 3, 6, 8"),
        (_other_tokenizer, {}, "another tokenizer"),
        (_other_data, {}, "other data"),
        (lambda _: None, {"head_dim": 16}, "n_head 2 -> 4"),
        (lambda _: None, {"max_seq_len": 64}, "sequence_len 32 -> 64"),
        (lambda _: None, {"device_batch_size": 4}, "choose 128 or 256"),
        (_torn, {}, "optimizer.safetensors cannot be read"),
        (_another_format, {}, "has format 0"),
    ],
)
def test_what_cannot_be_resumed(pool: Pool, base: Path, reference: Any, change: Any, settings: Any, words: str) -> None:
    shutil.copytree(reference(1).base / "base_checkpoints", base / "base_checkpoints")
    change(base)
    [result] = pool.run(base, **{"resume": True, **settings})
    assert result["code"] == 2
    assert words in result["err"]
    assert result["err"].startswith("error: ")
    assert result["err"].count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_disk_that_is_full(pool: Pool, base: Path, reference: Any, world_size: int) -> None:
    """One clear line from every process, none of which waits for another; earlier checkpoints are unchanged.

    The failure of one save, in a thread, is a line; that of the next one, too, ends the run.
    """
    whole = reference(world_size)
    shutil.copytree(whole.base / "base_checkpoints" / "d1" / "step_000003", checkpoints(base) / "step_000003")
    results = pool.run(base, [{"largest_file": 50_000}] * world_size, resume=True, save_every=1)
    for result in results:
        assert (result["code"], len(result["losses"])) == (2, 2)
        assert "cannot save" in result["err"]
        assert "step_000005" in result["err"]
        assert result["err"].count("\n") == 1
    for step in (4, 5):
        assert f"The checkpoint of step {step} is not saved: cannot save" in results[0]["out"]
    assert saved_steps(base) == [3]
    assert pool.run(base, world_size, resume=True)[0]["code"] == 0
    assert_same_end(base, whole.base)


# --- the command line itself -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "signal_number", "processes"),
    [
        ("python", signal.SIGINT, 1),
        ("torchrun --standalone --nproc_per_node=2", signal.SIGTERM, 2),
        ("torchrun --standalone --nproc_per_node=2", signal.SIGHUP, 2),
    ],
    ids=["python", "torchrun", "torchrun whose connection is closed"],
)
def test_command_line(base: Path, reference: Any, launcher: str, signal_number: int, processes: int) -> None:
    """As a user does: start, press Ctrl-C (or let a launcher send SIGTERM), and paste the printed command."""
    long_run = {"num_iterations": 300, "eval_every": -1}
    whole = reference(processes, save_every=-1, **long_run)
    environment = {
        **os.environ, "NANOCHAT_BASE_DIR": str(base), "NANOCHAT_DTYPE": "float32", "COLUMNS": "80",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    command = f"{launcher} -m scripts.base_train -- " + " ".join(f"--{k}={v}" for k, v in (RUN | long_run).items())

    def popen(line: str) -> subprocess.Popen[str]:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(shlex.split(line), cwd=ROOT, env=environment, text=True, **output)  # type: ignore[call-overload,no-any-return]

    with popen(command) as run:
        output = ""
        for line in run.stdout or []:
            if line.startswith("step ") and "\nstep " not in output:  # only once: a second Ctrl-C stops at once
                run.send_signal(signal_number)
            output += line
    assert run.returncode == (130 if processes == 1 else 1), output  # torchrun has its own code
    [message] = [line for line in output.splitlines() if "To resume: " in line]
    resume = message.split("To resume: ")[1]
    assert resume.startswith(launcher)
    with popen(resume) as run:
        output = run.communicate(timeout=LIMIT)[0]
    assert run.returncode == 0, output
    assert_same_end(base, whole.base, 300, history=False)  # the pool's has fewer points


if __name__ == "__main__":
    _serve()
