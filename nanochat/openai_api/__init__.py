"""OpenAI's API for clients that people already have: chat completions, completions, models."""
