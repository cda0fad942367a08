"""The KV cache and tool use that serve `nanochat.engine`."""
