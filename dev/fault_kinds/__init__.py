"""Parts of `dev/faults.py`: one kind of harm a file."""
