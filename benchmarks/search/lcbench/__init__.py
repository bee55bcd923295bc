"""Searches on a public benchmark: LCBench by its surrogate of YAHPO Gym."""
