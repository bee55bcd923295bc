"""The records of a study: what happened, in an append-only log, and whose they are."""
