"""`nanochat.common` is where to import the basic names from, and sets up a process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanochat import common
from nanochat.system import console, errors, files
from tests.support.processes import Forker


def test_it_offers_the_names_of_the_system_room() -> None:
    for module in (console, errors, files):
        names = [name for name in common.__all__ if hasattr(module, name)]
        assert names
        for name in names:
            assert getattr(common, name) is getattr(module, name)


def test_compute_init_alone(run_here: Path) -> None:
    assert run_here.is_dir()
    values = common.compute_init(seed=7, device="cpu")
    assert values == (False, 0, 0, 1, torch.device("cpu"))
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))
    with pytest.raises(common.UserError, match="tpu"):
        common.compute_init(device="tpu")


def show_compute_init(_folder: Path) -> None:
    ddp, rank, local_rank, world_size, device = common.compute_init(device="cpu")
    print(ddp, rank, local_rank, world_size, device)


def test_compute_init_in_two_processes(forker: Forker, base_dir: Path, tmp_path: Path) -> None:
    assert base_dir.is_dir()
    outputs = forker.run_ranks(show_compute_init, tmp_path, NANOCHAT_DTYPE="float32")
    assert [output.split() for output in outputs] == [
        ["True", "0", "0", "2", "cpu"],
        ["True", "1", "1", "2", "cpu"],
    ]
