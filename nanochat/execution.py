"""What runs for the model: its calculator, and (to come) its programs in a process of their own."""

from __future__ import annotations

from nanochat.calculator import calculate

__all__ = ["calculate"]
