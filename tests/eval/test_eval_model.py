"""Models to score by name: checkpoints, folders, and names that are neither."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanochat.common import UserError
from nanochat.eval.core_scorer import ModelScorer
from nanochat.eval.eval_model import EvalModel
from nanochat.eval.hf_scorer import HFScorer
from nanochat.runtime import Runtime
from scripts import export_hf
from tests.support.talks import save_model

CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)


@pytest.fixture
def checkpoints(run_here: Path) -> Path:
    """A base folder with d1 at two steps, and d2."""
    for tag, step in (("d1", 5), ("d1", 10), ("d2", 7)):
        save_model(run_here, tag=tag, step=step)
    return run_here


@pytest.mark.parametrize(("name", "tag", "step"), [("d1", "d1", 10), ("d1:5", "d1", 5), ("d2:", "d2", 7)])
@pytest.mark.usefixtures("checkpoints")
@pytest.mark.slow
def test_a_checkpoint_by_its_tag_and_step(name: str, tag: str, step: int) -> None:
    model = EvalModel.from_name(name, CPU, 100)
    assert (model.name, model.file_name) == (f"{tag}:{step}", f"{tag}_{step:06d}")
    assert model.note == f"Checkpoint {tag} of step {step}, computing in float32."
    assert isinstance(model.scorer, ModelScorer)
    assert model.context_len == 64


@pytest.mark.usefixtures("checkpoints")
def test_the_deepest_model_is_the_default() -> None:
    assert EvalModel.from_checkpoint(CPU, 100).name == "d2:7"


@pytest.mark.usefixtures("checkpoints")
@pytest.mark.slow
def test_a_folder_by_its_path(tmp_path: Path) -> None:
    folder = export_hf.main(export_hf.Config(out=tmp_path / "an export"))
    model = EvalModel.from_name(str(folder), CPU, 100)
    assert (model.name, model.file_name) == ("an export", "an--export")
    assert isinstance(model.scorer, HFScorer)
    assert model.context_len == 64
    assert "NanoChatForCausalLM of transformers, computing in float32" in model.note


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("d3", "'d3' is neither a folder nor a base checkpoint as TAG or TAG:STEP: there are d1, d2"),
        ("d1:7", "no checkpoint of step 7"),
        ("d1:x", "neither a folder nor a base checkpoint"),
        ("x" * 300, "neither a folder nor a base checkpoint"),
        ("/no/where", "neither a folder nor a name on the Hugging Face hub"),
    ],
)
@pytest.mark.usefixtures("checkpoints")
def test_no_such_model(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvalModel.from_name(name, CPU, 100)


@pytest.mark.usefixtures("run_here")
def test_no_checkpoint_at_all() -> None:
    with pytest.raises(UserError, match="there is none in"):
        EvalModel.from_name("d3", CPU, 100)
