"""Trials shown in Weights & Biases, MLflow and TensorBoard, written from the records. See `docs/tracking.md`."""
