"""Evaluation of models on tasks, on CORE, and of models from transformers."""
