"""nanochat: train a chat model from nothing, on two cores or on many GPUs."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m MODULE` is looking for its module, and has imported nothing else yet
    from nanochat.system.console import start_command

    start_command()
