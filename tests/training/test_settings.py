"""Settings of a training run, and the optimizer's settings and scheduled rates that follow from them."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

import pytest

from nanochat.train import Rates
from nanochat.training.settings import FineTuningSettings, TrainingSettings, optim_settings, scheduled_rates


@pytest.mark.parametrize("settings_class", [TrainingSettings, FineTuningSettings])
def test_optim_settings(settings_class: type[TrainingSettings | FineTuningSettings]) -> None:
    """`init_lr_frac` scales the three learning rates and nothing else."""
    config = settings_class(
        init_lr_frac=0.5, embedding_lr=0.4, unembedding_lr=0.02, matrix_lr=0.06, weight_decay=0.1, grad_clip=2.0
    )
    settings = optim_settings(config)
    assert (settings.embedding_lr, settings.unembedding_lr, settings.matrix_lr) == (0.2, 0.01, 0.03)
    assert (settings.weight_decay, settings.grad_clip) == (0.1, 2.0)


@pytest.mark.parametrize("settings_class", [TrainingSettings, FineTuningSettings])
def test_scheduled_rates(settings_class: type[TrainingSettings | FineTuningSettings]) -> None:
    config = settings_class(warmup_ratio=0.1, warmdown_ratio=0.5, final_lr_frac=0.2)
    assert scheduled_rates(config, 0.0, 100) == Rates(lr_multiplier=0.0, momentum=0.85)
    assert scheduled_rates(config, 0.75, 100).lr_multiplier == pytest.approx(0.6)
    assert scheduled_rates(config, 1.0, 100).lr_multiplier == pytest.approx(0.2)
    assert scheduled_rates(config, 0.1, 100).momentum == pytest.approx(0.95)


def test_shared_settings_agree() -> None:
    """Every training setting is a fine-tuning setting, too, with the same type, default, help and range."""

    def described(field: Field[Any]) -> tuple[Any, ...]:
        return field.type, field.default, {name: str(value) for name, value in field.metadata.items()}

    fine_tuning = {field.name: described(field) for field in fields(FineTuningSettings)}
    training = {field.name: described(field) for field in fields(TrainingSettings)}
    assert training == {name: fine_tuning[name] for name in training}
