"""GGUF files: every key and tensor is read back, wrong models are refused, damaged files are one line."""

from __future__ import annotations

import dataclasses
import random
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from nanochat.common import UserError
from nanochat.export import gguf_file
from nanochat.export.gguf_file import SAMPLING, GGUFFile, GGUFOptions, find_limits, import_gguf, tensor_type, write_gguf
from nanochat.export.gguf_forms import FORMS, choose_scales
from nanochat.export.gguf_tokenizer import Splitting
from tests.support.exports import TOKENIZER, loud_model
from tests.support.gguf import SHAPES, write

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weight_type", ["f32", "bf16", "q8_0", "q4_0"])
def test_every_key_and_tensor_is_read_back(form: str, weight_type: str, tmp_path: Path) -> None:
    """Keys and tensors that gguf's reader finds are those of the model; bf16 is rounded as torch rounds it."""
    model = loud_model(SHAPES["plain"])
    config = model.config
    about = {"general.name": "a model", "nanochat.step": 7}
    write(tmp_path / "m.gguf", model, weight_type=weight_type, form=form, **about)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}

    def key(name: str) -> object:
        return keys.pop(f"{form}.{name}")

    scales = choose_scales(model.state_dict(), is_quantized=weight_type in ("q8_0", "q4_0"))
    assert keys.pop("general.architecture") == form
    assert {name: keys.pop(name) for name in about} == about
    assert {name: pytest.approx(keys.pop(name)) for name in SAMPLING} == SAMPLING
    assert (key("context_length"), key("embedding_length"), key("block_count")) == (96, 64, 3)
    assert (key("feed_forward_length"), key("vocab_size")) == (4 * 64, TOKENIZER.get_vocab_size())
    assert (key("attention.head_count"), key("attention.head_count_kv"), key("rope.dimension_count")) == (2, 2, 32)
    assert key("rope.freq_base") == 10_000
    eps = 1e-6 if form == "apertus" else 1e-6 * scales.residual**2
    assert key("attention.layer_norm_rms_epsilon") == pytest.approx(eps)
    if form == "apertus":
        # softplus(alpha_p) = 1, softplus(alpha_n) = 0
        xielu = {name: keys.pop(f"xielu.{name}") for name in ("alpha_p", "alpha_n", "beta", "eps")}
        assert torch.nn.functional.softplus(torch.tensor(xielu["alpha_p"])).tolist() == pytest.approx([1.0] * 3)
        assert torch.nn.functional.softplus(torch.tensor(xielu["alpha_n"])).tolist() == [0.0] * 3
        assert (xielu["beta"], xielu["eps"]) == ([0.0] * 3, pytest.approx([-1e-6] * 3))
    else:
        assert (key("attention.key_length"), key("attention.value_length")) == (32, 32)
        assert (key("attention.sliding_window"), key("final_logit_softcapping")) == (96, 15)
    assert {name for name in keys if not name.startswith("tokenizer.")} == {
        *("general.type", "general.quantization_version", "general.file_type", "nanochat.softcap", "nanochat.limits")
    }

    expected = dict(FORMS[form].tensors(model.state_dict(), config, scales))
    assert [tensor.name for tensor in reader.tensors] == list(expected)
    options = GGUFOptions(weight_type, form)
    for stored in reader.tensors:
        tensor = expected[stored.name]
        kind = tensor_type(stored.name, tensor, options)
        assert (stored.tensor_type.name.lower(), list(reversed(stored.shape))) == (kind, list(tensor.shape))
        values = torch.from_numpy(np.array(gguf.quants.dequantize(stored.data, stored.tensor_type)))
        if kind == "bf16":
            tensor = tensor.bfloat16().float()
        tolerance = {"f32": 0, "bf16": 0, "q8_0": 0.5 / 127 + 2**-11, "q4_0": 1 / 8 + 2**-11}[kind] * float(
            tensor.abs().max()
        )
        torch.testing.assert_close(values, tensor, rtol=0, atol=tolerance)


def test_names_of_types_are_gguf_s() -> None:
    assert all(hasattr(gguf.LlamaFileType, name) for name in gguf_file._FILE_TYPES.values())
    assert set(gguf_file._FILE_TYPES) == set(gguf_file._GGML_TYPES) == set(gguf_file.WEIGHT_TYPES)
    assert "f16" not in gguf_file.WEIGHT_TYPES  # ReLU squared overflows it


def test_what_is_not_exact_is_said() -> None:
    config, exact, other = SHAPES["plain"], Splitting("bailingmoe", True), Splitting("llama-bpe", False)

    def words(*arguments: object) -> list[str]:
        return [limit.split()[1] for limit in find_limits(*arguments)]  # type: ignore[arg-type]

    assert words(config, exact, GGUFOptions()) == ["soft", "engine", "name"]
    assert words(config, exact, GGUFOptions(form="gemma3")) == ["engine", "name"]
    assert words(config, other, GGUFOptions("q4_0", "gemma3")) == ["of", "of", "engine", "name"]


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = loud_model(SHAPES["d5"])
    weights = {**model.state_dict(), "head.weight": model.head.weight.detach() * 1e8}
    with pytest.raises(UserError, match=r"output\.weight has weights of .*too large for q8_0, use --type=bf16"):
        write_gguf(tmp_path / "m.gguf", weights, model.config, TOKENIZER, GGUFOptions("q8_0", "apertus", True), {})
    assert not list(tmp_path.iterdir())


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"need the package gguf .*'\.\[gguf\]'"):
        import_gguf()
    with pytest.raises(UserError, match="need the package gguf"):
        GGUFFile.open(tmp_path / "m.gguf")


def test_damaged_files(tmp_path: Path) -> None:
    """Cuts and changed bytes of a file's first part are an error in one line, or leave a file that can be read."""
    path = tmp_path / "m.gguf"
    write(path, loud_model(SHAPES["one key-value head"]))
    content = path.read_bytes()
    rng = random.Random(1)
    refusals = []
    for case in range(60):
        damaged = bytearray(content[: rng.randrange(len(content))] if case % 3 == 0 else content)
        if case % 3 and damaged:
            damaged[rng.randrange(min(len(damaged), 3000))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            file = GGUFFile.open(path)
            assert file.context_len > 0
            file.tokenizer()
            for name in file.names():
                file.tensor(name)
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert all("m.gguf" in refusal and "\n" not in refusal for refusal in refusals)


def test_missing_files_and_tensors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.gguf"):
        GGUFFile.open(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("no model", encoding="utf-8")
    with pytest.raises(UserError, match=r"text\.gguf cannot be read as GGUF"):
        GGUFFile.open(tmp_path / "text.gguf")
    file = write(tmp_path / "m.gguf", loud_model(SHAPES["one key-value head"]))
    for length in (0, -1, 1 << 31, "long", None):
        with pytest.raises(UserError, match=r"m\.gguf has the context length .*must be from 1 to 1,048,576"):
            _ = dataclasses.replace(file, keys={**file.keys, "apertus.context_length": length}).context_len
    with pytest.raises(UserError, match=r"has no tensor blk\.9\.ffn_up\.weight"):
        file.tensor("blk.9.ffn_up.weight")
