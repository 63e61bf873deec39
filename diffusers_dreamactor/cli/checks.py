"""What is wrong with an option, before any work is done for it."""

from pathlib import Path


def check_output(output: str, suffixes: tuple[str, ...], inputs: list[str | None] = ()) -> None:
    """Raises what is wrong with `--output` before any work is done for it."""
    from diffusers_dreamactor import media

    media.check_output(output, suffixes, inputs, "--output")
    folder = Path(output).parent
    if not folder.is_dir():
        raise OSError(f"`--output` is {output}, but the folder {folder} does not exist.")


def check_device(device: str | None) -> str:
    """The device to run on; raises `ValueError` for one that is not there."""
    import torch

    from diffusers_dreamactor.memory.plans import best_device

    if device is None:
        return best_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device` is {device}, but this machine's best device is {best_device()}.") from error
    return device
