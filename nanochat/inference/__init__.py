"""Parts of `nanochat.engine`: the KV cache, batched decoding and tool use."""
