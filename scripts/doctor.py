"""Look at this machine and say what a training run will find: device, dtype, attention kernel, tools, disk, data.

    python -m scripts.doctor                  # exit code 0: training is possible; 1: it is not, and the lines say why
    python -m scripts.doctor --device=cpu     # as a run on the CPU would see it

Trains nothing and changes nothing, but for the base folder's note on how fast this processor's bf16 is.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.common import print0
from nanochat.configurator import Settings, cli, setting
from nanochat.reporting.markdown import wrap_text
from nanochat.system.checkup import FAIL, checkup


@dataclass(frozen=True)
class Config(Settings):
    """What to look at."""

    device: str = setting("auto", "the device to look at", choices=("auto", "cpu", "cuda", "mps"))


def main(config: Config) -> None:
    """Print one line for each finding; SystemExit(1) if one of them makes training impossible."""
    obstacles = []
    for name, (grade, what) in checkup(config.device):
        print0(wrap_text(f"{grade:<6}  {name:<11}  {what}", 120, indent=21))
        if grade == FAIL:
            obstacles.append(name)
    if obstacles:
        print0(f"Training is impossible here until this is mended: {', '.join(obstacles)}.")
        raise SystemExit(1)
    print0("Ready to train.")


if __name__ == "__main__":
    cli(Config, main, __doc__)
