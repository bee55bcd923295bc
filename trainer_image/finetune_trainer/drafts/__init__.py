"""What a data file says of the study that fits it: its columns, which of them are what, and a first manifest."""
