"""Searches in virtual time over a table of real trainings of a pretrained language model."""
