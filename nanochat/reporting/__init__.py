"""Schema, Markdown, tables, plots and statistics behind `nanochat.report`."""
