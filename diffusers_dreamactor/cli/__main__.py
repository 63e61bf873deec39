"""`python -m diffusers_dreamactor.cli`, as `accelerate launch -m` calls it."""

import sys

from diffusers_dreamactor.cli.command import main


if __name__ == "__main__":
    sys.exit(main())
