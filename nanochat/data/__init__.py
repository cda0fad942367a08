"""Shards, downloads, imports of a user's files, packing, and the embedded data."""
