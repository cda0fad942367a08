"""Errors, console and files (imported through `nanochat.common`); processor, environment and checks of the machine."""
