"""mid_train's command line and its defaults. Runs of it are tested in tests/training/test_finetune.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nanochat.training.settings import optim_settings, scheduled_rates
from scripts import base_train, mid_train
from tests.support.finetune import REFUSED_FLAGS


@pytest.mark.usefixtures("no_device")
@pytest.mark.parametrize(("flag", "words"), REFUSED_FLAGS)
def test_refused(refusal: Callable[..., str], flag: str, words: str) -> None:
    assert words in refusal(mid_train, flag)


def test_rates_are_those_of_pretraining() -> None:
    config, base_config = mid_train.Config(), base_train.Config()
    assert optim_settings(config) == optim_settings(base_config)
    for progress in (0, 0.5, 0.9, 1):
        assert scheduled_rates(config, progress, 100) == scheduled_rates(base_config, progress, 100)
