"""TensorFlow's tensors, graphs and SavedModels (package ``tensorflow``)."""
