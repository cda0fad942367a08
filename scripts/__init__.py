"""The commands, one a file."""

import nanochat  # noqa: F401  # first of all imports: it prepares the streams and Ctrl-C of a command
