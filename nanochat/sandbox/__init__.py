"""Limits on what a model's programs and expressions may do."""
