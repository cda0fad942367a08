"""The file meta.json of a checkpoint: its fields, their types, and the hash that it carries of itself.

    {
      "format": 1, "arch": "classic", "step": 400, "serial": 3, ...,
      "files": {"model.safetensors": {"bytes": 2243854896, "sha256_of_blocks": "5be0..."}, ...},
      "sha256": "9f0a..."
    }

The last line is the SHA-256 of the file's bytes with 64 zeros in its place. `files` holds the hashes of the others.
Checkpoints of earlier versions have neither; they load as before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from nanochat.common import UserError
from nanochat.gpt import GPTConfig
from nanochat.runtime import DTYPES
from nanochat.system.json_files import check_type, parse_file, read_bytes
from nanochat.system.json_text import short_repr

FORMAT = 1
ARCH = "classic"  # `arch` in meta.json: the model of nanochat/gpt.py; checkpoints of any other are refused
META_FILE = "meta.json"
_NO_DIGEST = "0" * 64
_SEAL = re.compile(rb'("sha256": ")([0-9a-f]{64})("\n\}\n)\Z')


class FileFacts(TypedDict):
    """Size and hash (`nanochat.checkpoints.tensors.hash_blocks`) of a file of a checkpoint."""

    bytes: int
    sha256_of_blocks: str


class SavedSettings(TypedDict, total=False):
    """The settings that later runs read from meta.json."""

    max_seq_len: int
    total_batch_size: int
    seed: int


class ModelMeta(TypedDict):
    """The fields of meta.json that describe the model."""

    model_config: dict[str, Any]  # fields of GPTConfig; checkpoints of earlier versions have no `softcap`: 15
    compute_dtype: str
    tokenizer_hash: str


class RunMeta(ModelMeta, total=False):
    """The fields of meta.json that a run writes. Only the model's are required: imported models lack others."""

    torch_version: str
    settings: dict[str, Any]  # fields of the script's config
    data_hash: str
    grounded: bool  # trained on questions with passages before them (nanochat/passages/grounding.py)
    run_id: str  # `$NANOCHAT_RUN_ID`, or empty
    first_serial: int  # serial of the run's first checkpoint: the same for those, and only those, of one run
    device_batch_size: int
    world_size: int
    rollout_dtype: str  # in which an RL run generates
    loop: dict[str, Any]  # fields of LoopState
    imported_from: str


class OpenMeta(RunMeta):
    """All fields of meta.json but those that only this module and `nanochat.checkpoints.tensors` use."""

    format: int
    arch: str
    step: int
    serial: int  # 1, 2, ... in the order in which the checkpoints of a run's folder were written


class CheckpointMeta(OpenMeta, total=False):
    """All fields of meta.json."""

    files: dict[str, FileFacts]  # by name
    sha256: str


def seal(meta: Mapping[str, Any]) -> str:
    """Return the text of meta.json, which ends with the hash of itself."""
    text = json.dumps({**meta, "sha256": _NO_DIGEST}, indent=2) + "\n"
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return text[: -len(_NO_DIGEST) - 4] + digest + text[-4:]


def read_meta(path: Path) -> CheckpointMeta:
    """Read the meta.json of a checkpoint. Raises `UserError` if it is damaged or of an unknown format."""
    file = path / META_FILE
    try:
        content = read_bytes(file)
        meta = parse_file(content, file, from_python=True)  # a loss may not be a number, and a path no Unicode
        if not isinstance(meta, dict) or "format" not in meta or "arch" not in meta:
            raise UserError(f"{file} is not the meta.json of a checkpoint: format or arch is missing")
        if (meta["format"], meta["arch"]) != (FORMAT, ARCH):
            version = f"format {short_repr(meta['format'])}, arch {short_repr(meta['arch'])}"
            raise UserError(f"{path} has {version}; this version reads {FORMAT}, {ARCH!r}")
        check_seal(content, meta, file)
        check_meta(meta, file)
    except UserError as error:
        raise UserError(f"{error} (remove {path}, or choose another step)") from error
    return cast(CheckpointMeta, meta)


def check_seal(content: bytes, meta: Mapping[str, Any], file: Path) -> None:
    """Raise `UserError` unless the file is as it was written, or from a version that did not write hashes."""
    match = _SEAL.search(content)
    if match is None:
        if "files" in meta or "sha256" in meta:
            raise UserError(f"{file} is damaged, or was edited: the SHA-256 at its end is missing")
        return
    unsealed = content[: match.start(2)] + _NO_DIGEST.encode("ascii") + content[match.end(2) :]
    if hashlib.sha256(unsealed).hexdigest() != match[2].decode("ascii"):
        raise UserError(f"{file} is damaged, or was edited: its SHA-256 is not the one that it was written with")


def check_meta(meta: Mapping[str, Any], file: Path) -> None:
    """Raise `UserError` unless all fields of meta.json are there and have the right types and possible values."""
    try:
        check_type(meta, CheckpointMeta, "")
        check_type(meta["model_config"], GPTConfig, "model_config")
        if missing := GPTConfig.__dataclass_fields__.keys() - meta["model_config"].keys() - {"softcap"}:
            raise UserError(f"model_config.{min(missing)} is missing")
        GPTConfig(**meta["model_config"])
        check_type(meta.get("settings", {}), SavedSettings, "settings")
        for key in ("compute_dtype", "rollout_dtype"):
            if meta.get(key, "float32") not in DTYPES:
                raise UserError(f"{key} is {short_repr(meta[key])}: must be one of {', '.join(DTYPES)}")
        for key in ("step", "serial"):
            if meta[key] < 0:
                raise UserError(f"{key} is {meta[key]}: must be at least 0")
    except UserError as error:
        raise UserError(f"{file} is damaged: {error}") from error
