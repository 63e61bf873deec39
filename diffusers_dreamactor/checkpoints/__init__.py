"""Bundled weights, avatars and motions, and the maker of tiny random repositories."""

from pathlib import Path

from diffusers_dreamactor.checkpoints.random_pipeline import save_random_pipeline


__all__ = ["bundled_avatars", "bundled_model", "bundled_motions", "bundled_speech", "save_random_pipeline"]

FOLDER = Path(__file__).parent


def bundled_model() -> str | None:
    """The folder of DreamActor-Tiny, or `None` in a build without trained weights."""
    folder = FOLDER / "tiny"
    return str(folder) if (folder / "model_index.json").is_file() else None


def bundled_avatars() -> dict[str, Path]:
    """Names and pictures of the bundled avatars; beside each picture lies its pose as a `.safetensors` motion."""
    return {path.stem: path for path in sorted((FOLDER / "avatars").glob("*.png"))}


def bundled_motions() -> dict[str, Path]:
    """Names and files of the bundled motions."""
    return {path.stem: path for path in sorted((FOLDER / "motions").glob("*.safetensors"))}


def bundled_speech() -> Path:
    """Three seconds of English, spoken by espeak-ng: a FLAC file of 16,000 samples a second."""
    return FOLDER / "speech.flac"
