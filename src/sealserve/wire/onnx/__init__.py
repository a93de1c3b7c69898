"""ONNX, as far as it is read here."""
