"""Parts of `nanochat.optim`: buckets of parameters, and the reductions of their gradients."""
