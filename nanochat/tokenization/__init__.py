"""Parts of `nanochat.tokenizer`: chat format, encoders and Hugging Face trainer; and a readable reference BPE."""
