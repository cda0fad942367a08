"""Parts of `scripts/read_documents.py`: a user's files as documents of blocks, cleaned and split."""
