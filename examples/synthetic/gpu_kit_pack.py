"""Packs all that training needs into one archive: data, code, and the wheels that a machine with PyTorch alone lacks."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path


KIT_FILES = (
    "avatar_view.py",
    "batch_appearance.py",
    "batch_body.py",
    "batch_clip.py",
    "batch_guidance.py",
    "batch_random.py",
    "batch_render.py",
    "batch_texture.py",
    "gpu_kit.py",
    "gpu_kit_config.py",
    "gpu_kit_phases.py",
    "gpu_kit_train.py",
    "gpu_kit_weights.py",
    "GPU_KIT.md",
    "motion_bank.py",
    "new_model.py",
    "train_face_encoder.py",
)
_BARE_INIT = '"""What training needs of diffusers_dreamactor; evaluation and assembly use the whole package."""\n'
WANTED = ("diffusers", "accelerate")
LEFT_OUT = ("torch", "hf-xet", "hf_xet")
"""PyTorch is what the other machine has; hf-xet is for downloads."""


def needed_wheels(wanted: tuple[str, ...] = WANTED) -> list[str]:
    """`name==version` of `wanted` and all that they need in turn, as installed here, without `LEFT_OUT` and PyTorch's own needs."""

    def canonical(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    def needs(name):
        for line in metadata.requires(name) or ():
            requirement, _, marker = line.partition(";")
            if "extra ==" in marker or ("python_version <" in marker.replace('"', "")):
                continue
            if "sys_platform ==" in marker or "platform_system ==" in marker:
                continue
            yield canonical(re.match(r"[A-Za-z0-9._-]+", requirement.strip())[0])

    left_out = {canonical(name) for name in LEFT_OUT}
    brought, waiting = set(), ["torch"]
    while waiting:
        name = waiting.pop()
        for need in needs(name):
            try:
                metadata.version(need)
            except metadata.PackageNotFoundError:
                continue
            if need not in brought:
                brought.add(need)
                waiting.append(need)
    found, waiting = {}, [canonical(name) for name in wanted]
    while waiting:
        name = waiting.pop()
        if name in found or name in left_out or name in brought:
            continue
        found[name] = metadata.version(name)
        waiting += needs(name)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def download_wheels(
    folder: Path, requirements: list[str], python_version: str | None, platforms: list[str], constraints: Path | None
) -> None:
    """Let pip download wheels, for another Python or platform if they are named."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(folder),
    ]
    if constraints is not None:
        command += ["-c", str(constraints)]
    if python_version:
        command += ["--implementation", "cp", "--python-version", python_version]
        for platform in platforms:
            command += ["--platform", platform]
    subprocess.run(command + requirements, check=True)


def pack(
    body_path: Path,
    output: Path,
    num_motions: int = 3000,
    motion_frames: int = 33,
    wheels: bool = True,
    python_version: str | None = None,
    platforms: tuple[str, ...] = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    limit: float = 60e6,
    seed: int = 0,
) -> int:
    """
    Write the archive (.tar.gz) with a folder `kit`.

    Args:
        body_path: the .npz of `AvatarBody.pack`.
        num_motions, motion_frames, seed: of `MotionBank.pack`.
        wheels: whether to carry wheels.
        python_version, platforms: of the machine that they are for; this one's by default.
        limit: bytes that the archive may have.

    Returns:
        its size in bytes.

    Raises:
        ValueError: it would be larger than `limit`; nothing is written.
    """
    from batch_body import BatchBody
    from motion_bank import MotionBank

    scripts, root = Path(__file__).parent, Path(__file__).parents[2]
    constraints = root / "constraints.txt"
    aside = output.with_name(f".{output.name}.part")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        BatchBody.pack(body_path, scratch / "body.safetensors")
        MotionBank.pack(body_path, scratch / "motions.safetensors", num_motions, motion_frames, seed)
        (scratch / "__init__.py").write_text(_BARE_INIT)
        if wheels:
            (scratch / "wheels").mkdir()
            download_wheels(scratch / "wheels", needed_wheels(), python_version, list(platforms), constraints)

        def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            # readable by whoever unpacks it, and of nobody in particular
            entry.mode, entry.uid, entry.gid, entry.uname, entry.gname = 0o644, 0, 0, "", ""
            return entry

        with tarfile.open(aside, "w:gz", compresslevel=9) as archive:
            for name in KIT_FILES:
                archive.add(scripts / name, f"kit/{name}", filter=plain)
            package = root / "diffusers_dreamactor"
            for path in sorted(package.rglob("*.py")):
                place = path.relative_to(package)
                if str(place) != "__init__.py" and place.parts[0] != "checkpoints":
                    archive.add(path, f"kit/diffusers_dreamactor/{place}", filter=plain)
            archive.add(scratch / "__init__.py", "kit/diffusers_dreamactor/__init__.py", filter=plain)
            for path in sorted(scratch.rglob("*")):
                if path.suffix in (".safetensors", ".whl"):
                    archive.add(path, f"kit/{path.relative_to(scratch)}", filter=plain)
    size = aside.stat().st_size
    if size > limit:
        aside.unlink()
        raise ValueError(
            f"The archive has {size / 1e6:.1f} MB, but `limit` is {limit / 1e6:.0f}: carry fewer motions, or no wheels."
        )
    aside.replace(output)
    return size
