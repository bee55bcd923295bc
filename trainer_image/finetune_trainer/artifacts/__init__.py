"""What is made of the winner beside the model itself: ONNX, attributions, and the card that says what it is."""
