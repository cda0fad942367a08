"""Errors, console, files, and the machine: versions, processor, checks for the doctor."""
