"""Batches from a forked process, which leaves Python's lock to the training loop.

A thread that renders conversations holds Python's lock for a tenth of a second at a time. On a GPU the training loop
cannot launch kernels meanwhile, and with eight processes, each of which renders the conversations of all, the GPUs
would wait. The process is a fork, as the workers of torch's DataLoader are on Linux: the data need not be copied to it.
It uses no CUDA, ignores SIGINT and SIGTERM (the training loop decides when to stop, and saves first), and ends when
nobody reads its batches any longer.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch

from nanochat.common import UserError
from nanochat.dataloader import MicroBatch

MAX_SECONDS = 600  # for one batch


def batches_in_process(batches: Iterator[MicroBatch]) -> Generator[MicroBatch, None, None]:
    """Yield the batches of an iterator that runs in a forked process; the tensors are on the CPU.

    A UserError in the process is raised here, any other error as a RuntimeError with its traceback.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside other threads: the child could wait for a lock that one of them held. The
        # child runs the iterator only, and no other thread runs the iterator's code.
        warnings.simplefilter("ignore", DeprecationWarning)
        process_id = os.fork()
    if process_id == 0:
        receiver.close()
        _run(batches, sender)
    sender.close()
    try:
        while (message := _receive(receiver, process_id)) is not None:
            inputs, targets, progress, cursor = message
            yield MicroBatch(torch.from_numpy(inputs), torch.from_numpy(targets), progress, cursor)
    finally:
        receiver.close()
        os.kill(process_id, signal.SIGKILL)
        os.waitpid(process_id, 0)


def _run(batches: Iterator[MicroBatch], sender: Connection) -> NoReturn:
    """Send the batches, then None or an error. Never returns, and runs no exit handler of the parent's."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        torch.set_num_threads(
            1
        )  # a fork has none of the threads that its parent computes with, and would wait for them
        gc.freeze()  # a collection would write to, and so copy, the pages shared with the parent
        for batch in batches:
            sender.send((batch.inputs.numpy(), batch.targets.numpy(), batch.progress, batch.cursor))
        sender.send(None)
    except BrokenPipeError:
        pass  # the parent has closed its end, or died
    except BaseException as error:
        sender.send(error if isinstance(error, UserError) else RuntimeError(traceback.format_exc()))
    finally:
        os._exit(0)


def _receive(receiver: Connection, process_id: int) -> tuple[Any, ...] | None:
    """Return the next message. Raises the error that the process has sent, RuntimeError if it was killed or hangs."""
    try:
        if not receiver.poll(MAX_SECONDS):
            raise RuntimeError(f"the loader's process ({process_id}) has sent no batch for {MAX_SECONDS} seconds")
        message: tuple[Any, ...] | BaseException | None = receiver.recv()
    except EOFError:
        raise RuntimeError(f"the loader's process ({process_id}) was killed, perhaps for lack of memory") from None
    if isinstance(message, BaseException):
        raise message
    return message
