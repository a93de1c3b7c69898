"""Models before they are sealed: known ones, their graphs, and import as servables.

Nothing here needs TensorFlow or PyTorch: graphs and checkpoints are read and
written by their formats, and numbers are checked against the originals in the
tests.
"""
