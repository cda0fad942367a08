"""The fine-tuning settings agree with the training settings that they repeat."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

from nanochat.training.finetune_settings import FineTuningSettings
from nanochat.training.settings import TrainingSettings


def test_shared_settings_agree() -> None:
    """Every training setting is a fine-tuning setting, too, with the same type, default, help and range."""

    def described(field: Field[Any]) -> tuple[Any, ...]:
        return field.type, field.default, {name: str(value) for name, value in field.metadata.items()}

    fine_tuning = {field.name: described(field) for field in fields(FineTuningSettings)}
    training = {field.name: described(field) for field in fields(TrainingSettings)}
    assert training == {name: fine_tuning[name] for name in training}
