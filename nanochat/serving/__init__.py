"""The chat in the terminal and in the browser: session, request schema, HTTP server."""
