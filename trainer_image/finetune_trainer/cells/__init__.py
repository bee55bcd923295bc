"""What the cells of a table mean: words, numbers, yes and no; and where a wrong one is."""
