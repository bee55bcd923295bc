"""What is made of the winner apart from the model itself: ONNX, attributions, and the model card."""
