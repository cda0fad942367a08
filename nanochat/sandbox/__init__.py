"""Calculator for a model's expressions, and process isolation for its programs (used by `nanochat.execution`)."""
