"""Requests joined into batches: parameters, queue, joining, and the proof that it is safe."""
