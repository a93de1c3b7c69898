"""TensorFlow Serving's requests, answers and configuration (package ``tensorflow.serving``)."""
