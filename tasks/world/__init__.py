"""Tasks of the embedded world (nanochat/data/storyworld/)."""
