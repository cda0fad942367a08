"""Around the training loop: setup, resuming, events, settings, schedules, logs, and runs on conversations."""
