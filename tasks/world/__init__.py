"""Tasks of the embedded world."""
