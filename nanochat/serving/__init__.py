"""Chat in the terminal and in the browser: session, request validation, HTTP server."""
