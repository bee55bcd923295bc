"""Shows trials in Weights & Biases, MLflow and TensorBoard, from the records. See `docs/tracking.md`."""
