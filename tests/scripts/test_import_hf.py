"""import_hf: exports of nanochat and of transformers as checkpoints that later stages can use, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nanochat.checkpoint_manager import Checkpoint, list_steps, load_model, open_checkpoint, read_meta, run_dir
from nanochat.checkpoints.tensors import load_tensors
from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.chat_session import generate_reply
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer
from nanochat.training.finetune import resolve_settings
from scripts import base_train, chat_rl, chat_sft, export_hf, import_hf, mid_train
from tests.support.damage import damaged_bytes, mutated_json, outcome
from tests.support.exports import CONFIGS, CPU, NAMES, TOKENIZER, VOCAB_SIZE, Exported, loud_model, random_prompt, save
from tests.support.hf_models import TEXTS
from tests.support.talks import sums, task_entry, write_mixture, write_talks

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name: str, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An imported export has the logits and the tokenizer of the original, and exports to the same bytes."""
    model, folder = exported[name]
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "other"))
    path = import_hf.main(import_hf.Config(folder=folder))
    assert path.name == "step_000007"
    loaded, tokenizer, meta = load_model("base", CPU)
    assert meta["compute_dtype"] == "float32"
    assert tokenizer.hash() == TOKENIZER.hash()
    ids = random_prompt(40)
    assert torch.equal(loaded(ids), model(ids))
    again = export_hf.main(export_hf.Config(model_tag=path.parent.name, out=tmp_path / "again"))
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (again / file).read_bytes() == (folder / file).read_bytes(), file
    with pytest.raises(UserError, match="holds checkpoints already"):
        import_hf.main(import_hf.Config(folder=folder))


def test_back_from_transformers(exported: Exported, tmp_path: Path, base_dir: Path) -> None:
    """A folder that transformers has saved, in bf16, imported as another stage."""
    model, folder = exported["one key-value head"]
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    import_hf.main(import_hf.Config(folder=tmp_path / "saved", source="sft", model_tag="x"))
    loaded, _, _ = load_model("sft", CPU, model_tag="x")
    assert get_tokenizer().hash() == TOKENIZER.hash()
    rows = loaded.embed.weight[:VOCAB_SIZE]
    assert torch.equal(rows, model.embed.weight[:VOCAB_SIZE].bfloat16().float())
    assert F.cosine_similarity(loaded(random_prompt(20)).flatten(), model(random_prompt(20)).flatten(), dim=0) > 0.99
    assert base_dir.is_dir()


def test_weights_in_several_files(
    exported: Exported, tmp_path: Path, base_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As transformers saves a large model: all files are read, and an error names the file at fault."""
    model, folder = exported["grouped"]
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "saved", max_shard_size="50KB")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    files = sorted((tmp_path / "saved").glob("model-*.safetensors"))
    assert len(files) > 2
    import_hf.main(import_hf.Config(folder=tmp_path / "saved"))
    loaded, _, _ = load_model("base", CPU)
    assert torch.equal(loaded(random_prompt(40)), model(random_prompt(40)))
    index = tmp_path / "saved" / "model.safetensors.index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    whole = files[1].read_bytes()
    for broken, message in (
        (lambda: files[1].write_bytes(whole[:-9]), f"{files[1]} cannot be read"),
        (files[1].unlink, f"{files[1]} cannot be read"),
        (
            lambda: index.write_text(json.dumps({**content, "weight_map": {"a": "../x"}}), encoding="utf-8"),
            "weight_map",
        ),
        (
            lambda: index.write_text(json.dumps({"weight_map": {"a": files[0].name}}), encoding="utf-8"),
            "is only in the model that config.json describes",
        ),
        (index.unlink, "model.safetensors cannot be read"),
    ):
        broken()
        with pytest.raises(UserError, match=re.escape(message)):
            import_hf.main(import_hf.Config(folder=tmp_path / "saved", model_tag="other"))
    assert capsys.readouterr().out.count("Imported") == 1
    assert [path.name for path in (base_dir / "base_checkpoints").iterdir()] == ["d2"]


# --- later stages -----------------------------------------------------------------------------------------------------


def test_later_stages_start_from_an_import(tmp_path: Path, run_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Midtraining (with the batch size of the exported run), SFT, the engine and the chat."""
    save(loud_model(CONFIGS["grouped"]), settings={"total_batch_size": 192})
    folder = export_hf.main(export_hf.Config(out=tmp_path / "hf"))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(run_here / "other"))
    import_hf.main(import_hf.Config(folder=folder))
    talks = write_talks(tmp_path / "sums.jsonl", sums(40))
    mixture = str(write_mixture(tmp_path / "mixture.toml", task_entry(talks)))
    fast: dict[str, Any] = {"mixture": mixture, "num_iterations": 1, "device_batch_size": 1, "compile": "off"}
    mid_train.main(mid_train.Config(device="cpu", **fast))
    mid = open_checkpoint(run_dir("mid", "d2"))
    assert mid.meta["settings"]["total_batch_size"] == 192
    assert mid.shape == CONFIGS["grouped"]
    assert mid.shape.softcap == 0
    chat_sft.main(chat_sft.Config(device="cpu", source="base", total_batch_size=96, **fast))
    for source in ("base", "sft"):
        model, tokenizer, _ = load_model(source, CPU)
        engine = Engine(model, tokenizer)
        assert len(engine.generate_batch(random_prompt(5)[0].tolist(), max_tokens=3)[0][0]) == 8
        chunks = generate_reply(engine, [{"role": "user", "content": "Hi"}], SamplingParams(max_tokens=4))
        assert "".join(chunk.text for chunk in chunks)


def test_an_unknown_batch_size(exported: Exported, base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If the folder does not record it, base_train's default is used, and a line says so."""
    path = import_hf.main(import_hf.Config(folder=exported["one key-value head"][1]))
    origin = Checkpoint(path, read_meta(path))
    assert path.is_relative_to(base_dir)
    capsys.readouterr()
    assert resolve_settings(mid_train.Config(), origin).total_batch_size == base_train.Config().total_batch_size
    assert "does not record its total_batch_size: using 524,288 tokens" in capsys.readouterr().out
    assert resolve_settings(mid_train.Config(total_batch_size=2048), origin).total_batch_size == 2048
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("script", "source"), [(mid_train, "mid"), (chat_sft, "sft"), (chat_rl, "rl")])
def test_an_import_is_not_resumed(
    script: Any, source: str, exported: Exported, base_dir: Path, refusal: Callable[..., str]
) -> None:
    path = import_hf.main(import_hf.Config(folder=exported["plain"][1], source=source))
    assert path.is_relative_to(base_dir)
    for flag in ("--resume", "--resume_from_step=7"):
        assert "was imported, without an optimizer state, and cannot be resumed" in refusal(script, flag)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", None, "config.json cannot be read"),
        ("tokenizer.json", None, "tokenizer.json cannot be read"),
        ("model.safetensors", None, "model.safetensors cannot be read"),
        ("config.json", {"model_type": "llama"}, "model_type is 'llama': must be 'nanochat'"),
        ("config.json", {"hidden_size": None}, "hidden_size is None"),
        ("config.json", {"intermediate_size": 8192}, "intermediate_size is 8192: must be 240"),
        ("config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters is"),
        ("config.json", {"num_hidden_layers": 3}, "model.layers.2.* is only in the model that config.json describes"),
        ("config.json", {"num_key_value_heads": 6}, "k_proj.weight has the shape"),
        ("config.json", {"vocab_size": 300}, r"it has \d+ tokens, the model 300"),
        ("tokenizer.json", {"model": {}}, "not a byte-level BPE"),
        ("tokenizer.json", {"added_tokens": []}, "tokenizer.json: "),
        ("tokenizer.json", {"normalizer": {"type": "NFC"}}, "the ids would differ"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported(
    file: str,
    change: dict[str, Any] | None,
    message: str,
    exported: Exported,
    tmp_path: Path,
    base_dir: Path,
) -> None:
    for path in exported["grouped"][1].iterdir():
        if path.name != file and path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        elif path.name == file and change:
            content = json.loads(path.read_text(encoding="utf-8"))
            (tmp_path / file).write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        import_hf.main(import_hf.Config(folder=tmp_path))
    assert "\n" not in str(error.value)
    assert not list(base_dir.iterdir()), "a refused import leaves nothing behind"


JSON_FILES = ("config.json", "tokenizer.json", "model.safetensors.index.json")


@pytest.fixture(scope="module")
def in_parts(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an export whose weights are in several files."""
    folder = tmp_path_factory.mktemp("parts")
    AutoModelForCausalLM.from_pretrained(exported["grouped"][1]).save_pretrained(folder, max_shard_size="50KB")
    AutoTokenizer.from_pretrained(exported["grouped"][1]).save_pretrained(folder)
    names = [*JSON_FILES, *(path.name for path in folder.glob("model-*.safetensors"))]
    files = {name: (folder / name).read_bytes() for name in names}
    files["config.json"] = (exported["grouped"][1] / "config.json").read_bytes()  # with the facts on its origin
    return files


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(JSON_FILES), is_mutation=st.booleans())
def test_damage_and_other_types(
    in_parts: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: Any, name: str, is_mutation: bool
) -> None:
    """One line, or a checkpoint that loads."""
    content = in_parts[name]
    if is_mutation:
        damaged = json.dumps(data.draw(mutated_json(json.loads(content)))).encode("utf-8")
    else:
        damaged = data.draw(damaged_bytes(content))
    folder = tmp_path_factory.mktemp("damaged")
    for file, original in in_parts.items():
        (folder / file).write_bytes(damaged if file == name else original)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder / "base"))
        path, message = outcome(lambda: import_hf.main(import_hf.Config(folder=folder, model_tag="d2")))
        if path is None:
            assert str(folder) in message
            assert not list_steps(folder / "base" / "base_checkpoints" / "d2")
        else:
            assert load_model("base", CPU)[0].config.vocab_size == VOCAB_SIZE
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["../model.safetensors"], "'../model.safetensors': must be the plain name"),
        (["/etc/passwd"], "'/etc/passwd': must be the plain name"),
        ([".."], "must be the plain name"),
        ([""], "must be the plain name"),
        (["a\\b"], "must be the plain name"),
        (["a\0b"], "must be the plain name"),
        (["out"], "out is a symbolic link to .*, out of the folder"),
        (["pipe"], "pipe cannot be read: it is not a file"),
        (["stored", "inside"], "is only in the model that config.json describes"),
    ],
)
def test_names_of_files(in_parts: dict[str, bytes], tmp_path: Path, base_dir: Path, names: Any, words: str) -> None:
    """Plain names only. A link may lead to another file of the folder, or to the store of the hub's cache."""
    folder = tmp_path / "cache" / "snapshots" / "12"
    folder.mkdir(parents=True)
    for file, content in in_parts.items():
        (folder / file).write_bytes(content)
    part = next(name for name in in_parts if name.endswith(".safetensors"))
    (tmp_path / "cache" / "blobs").mkdir()
    (tmp_path / "cache" / "blobs" / "34").write_bytes(in_parts[part])
    (tmp_path / "secret").write_bytes(in_parts[part])
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "stored").symlink_to("../../blobs/34")
    (folder / "inside").symlink_to(part)
    os.mkfifo(folder / "pipe")
    index = {"weight_map": {str(number): name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UserError, match=words):
        import_hf.main(import_hf.Config(folder=folder))
    assert not list(base_dir.iterdir())


def test_absurd_sizes(exported: Exported, tmp_path: Path, base_dir: Path) -> None:
    """Refused before a model of this size, or a list of its weights, is made."""
    shutil.copytree(exported["grouped"][1], tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for field in ("num_hidden_layers", "max_position_embeddings", "hidden_size", "vocab_size"):
        for value, words in ((10**9, "it must be at most"), (1e9, "must be a whole number"), (10**30, "at most")):
            path.write_text(json.dumps({**config, field: value}), encoding="utf-8")
            with pytest.raises(UserError, match=words):
                import_hf.main(import_hf.Config(folder=tmp_path / "a"))
    assert not list(base_dir.iterdir())


@pytest.mark.parametrize(("value", "words"), [(torch.nan, "not finite"), (3e38, "too large.*overflow")])
def test_weights_that_no_model_computes_with(
    exported: Exported, tmp_path: Path, base_dir: Path, value: float, words: str
) -> None:
    shutil.copytree(exported["grouped"][1], tmp_path / "a")
    weights = load_file(tmp_path / "a" / "model.safetensors")
    weights["lm_head.weight"][3, 4] = value
    save_file(weights, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"its weights are {words} \(head.weight\)"):
        import_hf.main(import_hf.Config(folder=tmp_path / "a"))
    assert not list(base_dir.iterdir())


def test_another_vocabulary(exported: Exported, base_dir: Path) -> None:
    RustBPETokenizer.train_from_iterator(TEXTS, 300).save(base_dir / "tokenizer")
    with pytest.raises(UserError, match="another vocabulary"):
        import_hf.main(import_hf.Config(folder=exported["plain"][1]))


def test_a_file_that_is_too_large_to_be_mapped(exported: Exported, tmp_path: Path, base_dir: Path) -> None:
    """A sparse file whose header promises a huge tensor: the shapes are compared before anything is mapped."""
    shutil.copytree(exported["grouped"][1], tmp_path / "a")
    num_bytes = 1 << 42
    header = {"lm_head.weight": {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [0, num_bytes]}}
    text = json.dumps(header).encode("utf-8")
    with open(tmp_path / "a" / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + num_bytes)
    with pytest.raises(UserError, match=r"is only in the model that config\.json describes"):
        import_hf.main(import_hf.Config(folder=tmp_path / "a"))
    with pytest.raises(UserError, match="cannot be mapped into memory"):
        load_tensors(tmp_path / "a" / "model.safetensors")
    assert not list(base_dir.iterdir())
