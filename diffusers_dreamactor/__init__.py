"""DreamActor-M1 human image animation for Diffusers."""

__version__ = "0.1.0"
