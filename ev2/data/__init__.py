"""Images from storage to batches of NumPy arrays: the home of TensorFlow."""
