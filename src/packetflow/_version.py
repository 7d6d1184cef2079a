"""The version, in a place that the build can read without importing the core."""

__version__ = "0.1.0"
