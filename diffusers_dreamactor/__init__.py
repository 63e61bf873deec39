"""
DreamActor-M1 human image animation for Diffusers.

Importing this package makes its classes known to Diffusers, so that `DiffusionPipeline.from_pretrained`,
`AutoModel.from_pretrained` and single-file loading find them.
"""

import importlib
import sys
from pathlib import Path

from diffusers_dreamactor.version import __version__ as __version__


# The command reads its arguments before it loads anything: `dreamactor --help` would else take as long as PyTorch and
# Diffusers take to import. It registers by itself when there is something to run.
if Path(sys.argv[0]).with_suffix("") != Path(sys.executable).parent / "dreamactor":
    from diffusers_dreamactor.registration import *  # noqa: F403
    from diffusers_dreamactor.registration import __all__  # noqa: F401


def __getattr__(name: str):
    """The public names, for the command and the Diffusers that it runs, once they are asked for."""
    # not `from diffusers_dreamactor import registration`, which would ask here for it
    registration = importlib.import_module("diffusers_dreamactor.registration")
    if name not in registration.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(registration, name)
