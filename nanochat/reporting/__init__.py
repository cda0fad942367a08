"""Schema, Markdown, plots and statistics that serve `nanochat.report`."""
