"""Where a video comes from: said in its metadata and, if you like, in a C2PA manifest beside it."""

import datetime
import hashlib
import json
import os
import re
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusers_dreamactor.files import errors_naming
from diffusers_dreamactor.version import __version__


__all__ = ["Provenance", "model_name"]

# IPTC's term for what a trained model generated, which C2PA and platforms' labels read.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SOFTWARE = "diffusers-dreamactor"
SIDECAR_SUFFIX = ".c2pa.json"

_FORMATS = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".mkv": "video/x-matroska"}


def _now() -> datetime.datetime:
    """Now, or the moment that `SOURCE_DATE_EPOCH` names, as reproducible-builds.org specifies it."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    try:
        return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"`SOURCE_DATE_EPOCH` is {epoch!r}, but has to be whole seconds since 1970.") from error


def model_name(name_or_path: str | os.PathLike | None) -> str | None:
    """
    A model's name for others to read: a Hub id as it is, with its commit where it was loaded from the cache; of a folder only
    its last part, since where it lies on a disk is nobody's business.
    """
    if not name_or_path:
        return None
    path = Path(name_or_path)
    cached = re.search(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]+)", str(path))
    if cached:
        return f"{cached[1]}/{cached[2]}@{cached[3][:12]}"
    if path.is_dir() and path.resolve() == Path(__file__).parent.resolve() / "checkpoints" / "tiny":
        return "DreamActor-Tiny"
    return path.name if path.is_dir() or path.is_absolute() else str(name_or_path)


@dataclass(frozen=True)
class Provenance:
    """
    How a video came to be.

    Args:
        model (`str`, *optional*): Name of the weights.
        seed (`int` or `tuple[int, ...]`, *optional*):
            What the generator was seeded with, one for each video of a batch that has several. It gives the same video
            again when the generator had drawn nothing before.
        date (`datetime.datetime`, *optional*):
            When; default: now, or the moment that the environment variable `SOURCE_DATE_EPOCH` names (whole seconds since
            1970). With it, the same frames give the same file, byte by byte.
        software, version (`str`): What generated it.
    """

    model: str | None = None
    seed: int | tuple[int, ...] | None = None
    date: datetime.datetime = field(default_factory=_now)
    software: str = SOFTWARE
    version: str = __version__

    def of_video(self, index: int) -> "Provenance":
        """That of one video of a batch."""
        return replace(self, seed=self.seed[index]) if isinstance(self.seed, tuple) else self

    @property
    def when(self) -> str:
        """The date as ISO 8601 writes it, in UTC."""
        return self.date.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def facts(self) -> dict[str, Any]:
        """What is known, for programs to read."""
        facts = {
            "digitalSourceType": DIGITAL_SOURCE_TYPE,
            "software": self.software,
            "version": self.version,
            "model": self.model,
            "seed": self.seed,
            "date": self.when,
        }
        return {name: value for name, value in facts.items() if value is not None}

    def metadata(self) -> dict[str, str]:
        """
        Tags that MP4, MOV and Matroska files keep: `comment` for people, `description` with [`facts`] as JSON, `date` and
        `creation_time`.
        """
        comment = f"AI-generated{f' with {self.model}' if self.model else ''} ({self.software} {self.version})"
        if self.seed is not None:
            comment += f", seed {self.seed}" if isinstance(self.seed, int) else f", seeds {self.seed}"
        description = json.dumps(self.facts(), ensure_ascii=False)
        return {"comment": comment, "description": description, "date": self.when, "creation_time": self.when}

    def manifest(self, video: str | os.PathLike, name: str | None = None) -> dict[str, Any]:
        """
        The definition of a C2PA manifest (specification 2.x), as `c2patool` and `c2pa-python` take it to sign a file: who
        generated it, when, and with what. It is not signed: that takes a certificate of your own.

        Args:
            video (`str` or `os.PathLike`): The file, whose SHA-256 it names.
            name (`str`, *optional*): What the file is called; default: the name that it has.
        """
        video = Path(video)
        with video.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        created = {
            "action": "c2pa.created",
            "when": self.when,
            "digitalSourceType": DIGITAL_SOURCE_TYPE,
            "softwareAgent": {"name": self.software, "version": self.version},
            "parameters": {k: v for k, v in {"model": self.model, "seed": self.seed}.items() if v is not None},
        }
        file_assertion = {"alg": "sha256", "hash": digest, "name": name or video.name}
        return {
            "claim_generator_info": [{"name": self.software, "version": self.version}],
            "title": name or video.name,
            "format": _FORMATS[video.suffix.lower()],
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
                {"label": "diffusers_dreamactor.file", "data": file_assertion},
            ],
        }

    def write_sidecar(self, video: str | os.PathLike, path: str | os.PathLike | None = None) -> Path:
        """
        Writes the [`manifest`] of a video beside it, `out.c2pa.json` of `out.mp4`, at once or not at all.

        Args:
            video (`str` or `os.PathLike`): The file.
            path (`str` or `os.PathLike`, *optional*): What the video will be called, when it is not called so yet.

        Returns:
            `Path`: The sidecar.
        """
        path = Path(path or video)
        sidecar = path.with_suffix(SIDECAR_SUFFIX)
        aside = sidecar.with_name(f".{uuid.uuid4().hex}.part")
        try:
            with errors_naming(sidecar):
                aside.write_text(json.dumps(self.manifest(video, path.name), indent=1) + "\n", encoding="utf-8")
                os.replace(aside, sidecar)
        finally:
            aside.unlink(missing_ok=True)
        return sidecar
