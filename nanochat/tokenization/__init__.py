"""Chat format, encoders and BPE trainers behind `nanochat.tokenizer`, and a reference BPE to read."""
