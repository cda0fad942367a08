"""Building blocks of the model and of generation that `nanochat.gpt` and the engine use."""
