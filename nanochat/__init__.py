"""nanochat: train a chat model from nothing, on two cores or on many GPUs."""
