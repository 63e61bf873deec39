"""Captures: video to `MotionSequence`."""
