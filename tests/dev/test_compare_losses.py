"""The comparison of two checkouts: names, settings, results and their differences, without running a stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dev import compare_losses
from dev.compare_losses import STAGES, Fact, Stage, StageError, first_difference
from nanochat import configurator

HISTORY = [
    {"step": 1, "loss": 0.1 + 0.2, "lr_multiplier": 1.0, "tokens_per_second": 7.0},
    {"step": 1, "val_bpb": 3.0},
]


def write_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    """A checkpoint that has all that is read of one."""
    folder.mkdir(parents=True)
    loop = {"step": 1, "seconds": 0.5, "history": HISTORY}
    meta = {"step": 1, "settings": {"depth": 2}, "model_config": {"n_layer": 2}, "loop": loop, **changes}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    save_file({"momentum": torch.zeros(2)}, folder / "optimizer.safetensors")
    return folder


def test_a_setting_is_given_in_the_spelling_that_the_help_lists() -> None:
    old = compare_losses.settings_in_help(
        "  --lr_scale FLOAT  factor\n  -a TEXT, --tasks TEXT\n      as in --init_lr_frac"
    )
    assert old == {"lr_scale", "tasks"}
    assert compare_losses.spelling("init_lr_frac", old, "m") == "lr_scale"
    assert compare_losses.spelling("init_lr_frac", {"init_lr_frac", "lr_scale"}, "m") == "init_lr_frac"
    with pytest.raises(StageError, match="m has none of the settings depth: add its spelling to SETTING_NAMES"):
        compare_losses.spelling("depth", old, "m")


def test_commands_become_settings_and_settings_files(tmp_path: Path) -> None:
    stage = Stage("s", "a.module --depth=2 --rate=-0.5 --prompt='What is 1 + 2?' --out={base}/out --compile=off")
    settings = stage.settings(Path("/b"))
    assert stage.module == "a.module"
    assert settings == {"depth": "2", "rate": "-0.5", "prompt": "What is 1 + 2?", "out": "/b/out", "compile": "off"}
    path = tmp_path / "settings.toml"
    path.write_text(compare_losses.as_toml(settings), encoding="utf-8")
    expected = {"depth": 2, "rate": -0.5, "prompt": "What is 1 + 2?", "out": "/b/out", "compile": "off"}
    assert configurator.tomllib.loads(path.read_text(encoding="utf-8")) == expected


def test_every_stage_has_results_to_compare() -> None:
    assert all(stage.checkpoints or stage.section or stage.files or stage.prints for stage in STAGES)
    assert len({stage.name for stage in STAGES}) == len(STAGES)


def test_checkpoints_that_differ_in_times_and_settings_only_are_equal(tmp_path: Path) -> None:
    tensors = {"wte": torch.arange(4.0), "head": torch.ones(2, 2)}
    history = [HISTORY[0] | {"tokens_per_second": 9.0}, HISTORY[1]]
    loop = {"step": 1, "seconds": 0.75, "history": history}
    first = write_checkpoint(tmp_path / "a", tensors)
    second = write_checkpoint(tmp_path / "b", tensors, settings={"depth": 2, "new": 1}, loop=loop)
    records = [list(compare_losses.checkpoint_facts(folder)) for folder in (first, second)]
    assert first_difference(*records) is None
    assert compare_losses.count(records[0]) == "1 step, 3 values, 3 tensors"


def test_a_bit_of_a_tensor_is_a_difference(tmp_path: Path) -> None:
    tensor = torch.arange(4.0)
    first = write_checkpoint(tmp_path / "a", {"head": torch.ones(2), "wte": tensor})
    changed = tensor.clone()
    changed[1] = torch.nextafter(changed[1], torch.tensor(2.0))
    second = write_checkpoint(tmp_path / "b", {"head": torch.ones(2), "wte": changed})
    records = [list(compare_losses.checkpoint_facts(folder)) for folder in (first, second)]
    difference = first_difference(*records)
    assert difference is not None
    assert difference.startswith("model.safetensors wte: F32 [4] ")


def test_a_history_is_compared_to_the_last_digit_under_present_names() -> None:
    old = [HISTORY[0] | {"lr_scale": 1.0}, HISTORY[1]]
    del old[0]["lr_multiplier"]
    new = [dict(HISTORY[0]), dict(HISTORY[1])]
    assert sorted(compare_losses.history_facts(old)) == sorted(compare_losses.history_facts(new))
    new[0]["loss"] = 0.3
    difference = first_difference([*compare_losses.history_facts(old)], [*compare_losses.history_facts(new)])
    assert difference == "step 1: loss: 0.30000000000000004 != 0.3"


def test_the_first_of_several_differences_is_named() -> None:
    facts = [Fact("metric", "step 1: loss", "1.0"), Fact("metric", "step 2: loss", "0.5"), Fact("tensor", "wte", "a")]
    changed = [facts[0], Fact("metric", "step 2: loss", "0.25"), Fact("tensor", "wte", "b")]
    assert first_difference(facts, changed) == "step 2: loss: 0.5 != 0.25"
    assert first_difference(facts, facts[:2]) == "wte: a != (absent)"
    assert first_difference(facts[:2], facts) == "wte: (absent) != a"
    assert first_difference(facts, facts) is None


def test_report_files_and_output_are_collected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report").mkdir()
    section = {"metrics": {"accuracy": {"value": 0.5}, "tokens per second": 1.0}, "samples": ["a b"], "seconds": 1.0}
    (tmp_path / "report" / "s.json").write_text(json.dumps(section), encoding="utf-8")
    (tmp_path / "out").mkdir()
    for name in ("config.json", "README.md"):
        (tmp_path / "out" / name).write_text("{}", encoding="utf-8")
    stage = Stage("s", "m", section="s", files="out/*", prints=True)
    record = list(compare_losses.collect(stage, tmp_path, "an answer\n"))
    assert [(fact.kind, fact.name) for fact in record] == [
        ("value", "report metrics accuracy.value"),
        ("value", "report samples 0"),
        ("file", "config.json"),
        ("text", "output"),
    ]
    assert compare_losses.show("s", record, record)
    assert not compare_losses.show("s", record, record[:-1])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["s: equal (2 values, 1 text, 1 file)", "s: DIFFERENT at output: 'an answer\\n' != (absent)"]
