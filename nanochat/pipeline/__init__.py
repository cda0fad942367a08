"""The run from a folder of documents to a chat model: its size, and its steps."""
