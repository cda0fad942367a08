"""The choice of the forward pass that generates, and the one on GPUs. See nanochat/README.md."""
