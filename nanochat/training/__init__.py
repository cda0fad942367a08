"""Setup, settings, schedules, logs and fine-tuning runs around `nanochat.train`."""
