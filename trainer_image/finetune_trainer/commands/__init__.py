"""What `finetune` can be asked to do: a module for each word, with `add_arguments` and `run` (see `cli.Module`)."""
