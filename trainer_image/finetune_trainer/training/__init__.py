"""The training loop and its parts: usable alone, without Ray."""
