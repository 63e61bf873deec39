"""The version, which the package, its metadata and the videos that it makes name."""

__version__ = "0.1.0"
