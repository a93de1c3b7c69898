"""Image classifiers written out as frozen graphs, one architecture a file."""
