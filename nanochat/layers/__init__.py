"""Building blocks below the model and the engine: sampling with its settings, and padding.

They are not in `nanochat/inference/`, because `nanochat.gpt` and the loaders use them too.
"""
