"""Data sets and their preparation for training.

Parts of `nanochat.dataset` (shards, download, import, embedded stories), and packing of conversations into rows.
"""
