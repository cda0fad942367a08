"""The parts of `nanochat.engine`: the KV cache, batched decoding and tool use."""
