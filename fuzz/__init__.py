"""Fuzz targets for everything that reads bytes from outside, and what runs them.

Each target may end in one of the errors for bad input, and in nothing else: no
other exception, no InternalError, not beyond its time and memory.
"""
