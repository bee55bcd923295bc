"""Programs that work on this checkout; nothing of them is installed."""
