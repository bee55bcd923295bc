"""The trainer: fine-tunes encoder models, searches their hyperparameters on Ray Tune, keeps the records."""
