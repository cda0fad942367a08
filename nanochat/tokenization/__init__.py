"""Chat format, encoders and trainers that serve `nanochat.tokenizer`."""
