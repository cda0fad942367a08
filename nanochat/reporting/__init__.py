"""Parts of `nanochat.report`: schema, Markdown, tables, plots and statistics."""
