"""Conversion of other weights to DreamActor repositories; the scripts in `conversion/` and `dreamactor convert` run it."""
