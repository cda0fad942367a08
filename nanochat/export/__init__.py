"""Weights and tokenizer for other programs, and back."""
