"""Tasks made of the documents in the base folder."""
