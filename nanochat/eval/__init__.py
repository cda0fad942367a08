"""Evaluation on chat tasks, CORE behind `nanochat.core_eval`, and models from transformers."""
