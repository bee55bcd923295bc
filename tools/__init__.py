"""Programs that work on this checkout; none of them is installed."""
