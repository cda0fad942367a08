"""The machine: versions, processor, checks for the doctor."""
