"""Several copies of a model, each in a process of its own, and the choice of a copy for a request."""
