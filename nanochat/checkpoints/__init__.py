"""Parts of `nanochat/checkpoint_manager.py`."""
