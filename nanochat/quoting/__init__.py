"""Replies that quote the documents: sentences of the passages found, the best of them, or none."""
