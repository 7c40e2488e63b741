"""Image augmentation, as TensorFlow operations."""
