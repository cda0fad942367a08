"""Check this machine before a training run: device, dtype, attention kernel, tools, disk, data.

    python -m scripts.doctor                  # exit code 0: training is possible; 1: it is not, and a line says why
    python -m scripts.doctor --device=cpu     # the checks for a run on the CPU

It trains nothing. The only file it may write is `cpu.json` in the base folder: the speed of bf16 on this processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanochat.common import base_dir, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.reporting.markdown import wrap_text
from nanochat.system import machine_checks
from nanochat.system.machine_checks import FAIL, NOTICE, OK, Check, Finding, run_check

DEPTHS = (12, 20, 32)  # whose memory `check_training_memory` computes


@dataclass(frozen=True)
class Config(Settings):
    device: str = setting("auto", "device that the run will use", choices=("auto", "cpu", "cuda", "mps"))


def main(config: Config) -> None:
    """Print one line for each finding; SystemExit(1) if one of them makes training impossible."""
    failed = []
    for name, check in CHECKS.items():
        # Data, tokenizer and checkpoints can be made on this machine: their absence does not make training impossible.
        grade, message = run_check(check, config.device, NOTICE if check in MADE_BY_A_RUN else FAIL)
        print0(wrap_text(f"{grade:<6}  {name:<11}  {message}", 120, indent=21))
        if grade == FAIL:
            failed.append(name)
    if failed:
        print0(f"Training is impossible here until this is fixed: {', '.join(failed)}.")
        raise SystemExit(1)
    print0("Ready to train.")


def check_tokenizer_trainer(_: str) -> Finding:
    """Check the extension that trains the tokenizer."""
    try:
        from nanochat.tokenization import _rustbpe
    except ImportError as error:
        message = f"the Rust extension is not built ({error}): Hugging Face's trainer is used instead, which is slower"
        return Finding(NOTICE, message)
    return Finding(OK, f"the Rust extension, {Path(str(_rustbpe.__file__)).name}")


def check_attention(device: str) -> Finding:
    """Attention kernels that torch chooses for training and for generation."""
    from nanochat.layers.attention import PLAIN, describe_kernels
    from nanochat.runtime import Runtime, resolve_device

    runtime = Runtime.start(device=resolve_device(device, 0).type)
    summary = describe_kernels(runtime.device, runtime.compute_dtype)
    if PLAIN in summary:
        return Finding(NOTICE, f"{summary}; plain mathematics is slower, and needs more memory in long contexts")
    return Finding(OK, summary)


def check_generation(device: str) -> Finding:
    """The code that generates text: in Rust, in Triton or in torch."""
    from nanochat.gpt import GPTConfig
    from nanochat.runtime import Runtime, resolve_device
    from nanochat.steps.choice import missing_for_triton
    from nanochat.steps.make_step import is_native

    runtime = Runtime.start(device=resolve_device(device, 0).type)
    if is_native(runtime.device, runtime.compute_dtype):
        return Finding(OK, "the step in Rust")
    if runtime.device.type == "cpu":
        return Finding(
            NOTICE,
            "torch, which is slower, has no int8, and an answer may depend on its company by rounding: build the "
            "extension with bash dev/setup.sh",
        )
    if runtime.device.type != "cuda":
        return Finding(OK, "torch; an answer may depend on its company by rounding")
    missing = missing_for_triton(runtime.device, runtime.compute_dtype, GPTConfig())
    if missing:
        return Finding(
            NOTICE, f"torch, which is slower, and an answer may depend on its company by rounding: {missing}"
        )
    return Finding(OK, "kernels in Triton, as CUDA graphs; they are compared with the model before they are used")


def check_training_memory(device: str) -> Finding:
    """Rows of a micro-batch that fit into the GPU's memory, computed for usual depths of base_train."""
    import torch

    from nanochat.runtime import resolve_device
    from nanochat.training.batch_size import MAX_CPU_TOKENS, fitting_rows, memory_limit

    chosen = resolve_device(device, 0)
    if chosen.type != "cuda":
        return Finding(OK, f"a micro-batch of --device_batch_size=auto has at most {MAX_CPU_TOKENS:,} tokens here")
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    rows = {depth: fitting_rows(depth, dtype, memory_limit(chosen)) for depth in DEPTHS}
    fits = ", ".join(f"d{depth} fits with {count} rows" for depth, count in rows.items() if count)
    if not fits:
        return Finding(NOTICE, f"not even d{min(DEPTHS)} fits: choose a smaller --depth or --checkpoint_activations")
    return Finding(OK, f"{fits} of 2,048 tokens, one process, as computed")


def check_data(_: str) -> Finding:
    """Check the data set in the base folder."""
    from nanochat.data.shards import load_manifest

    manifest = load_manifest()
    return Finding(OK, f"{manifest.source}: {len(manifest.train)} training shards and {manifest.validation}")


def check_trained_tokenizer(_: str) -> Finding:
    """Check the trained tokenizer in the base folder."""
    from nanochat.tokenizer import get_tokenizer

    return Finding(OK, f"{get_tokenizer().get_vocab_size():,} tokens")


def check_checkpoints(_: str) -> Finding:
    """List the checkpoints in the base folder."""
    paths = sorted(path.parent.relative_to(base_dir()) for path in base_dir().glob("*_checkpoints/*/step_*/meta.json"))
    return Finding(OK, ", ".join(map(str, paths)) or "none yet")


CHECKS: dict[str, Check] = {
    "versions": machine_checks.check_versions,
    "machine": machine_checks.check_machine,
    "bf16": machine_checks.check_bf16,
    "device": machine_checks.check_device,
    "attention": check_attention,
    "generation": check_generation,
    "compile": machine_checks.check_compile,
    "memory": check_training_memory,
    "trainer": check_tokenizer_trainer,
    "disk": machine_checks.check_disk,
    "data": check_data,
    "tokenizer": check_trained_tokenizer,
    "checkpoints": check_checkpoints,
}
MADE_BY_A_RUN = (check_data, check_trained_tokenizer, check_checkpoints)


if __name__ == "__main__":
    cli(Config, main, __doc__)
