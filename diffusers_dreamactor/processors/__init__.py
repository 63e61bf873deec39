"""Processors: a `MotionSequence` and a reference to what the models eat."""
