"""`dreamactor convert lora` as a script of the checkout; see README.md."""

from diffusers_dreamactor.conversion.convert_lora import main
from diffusers_dreamactor.conversion.repository import run


if __name__ == "__main__":
    run(main)
