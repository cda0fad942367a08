"""Settings, setup, schedules, logs, resuming and fine-tuning runs; serves the training loop in `nanochat.train`."""
