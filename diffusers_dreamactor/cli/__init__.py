"""The `dreamactor` command: animate, batch, capture, convert, demo, doctor, speak."""

from diffusers_dreamactor.cli.command import main


__all__ = ["main"]
