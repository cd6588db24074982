"""What a training leaves: checkpoints, metrics, TensorBoard events, and the trained model."""
