"""
A folder that is a Hugging Face Space, or that Space itself.

    python examples/gradio_space/deploy.py FOLDER [--to USER/NAME] [--gallery]

The page, the package itself (no registry has it), and what it needs, by name, are put into FOLDER; with `--to` it is uploaded
there (`hf auth login` first). `--gallery` draws the examples' moving thumbnails anew.
"""

import argparse
import shutil
import tomllib
from pathlib import Path

import gradio


HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ("app.py", "studio.py", "gallery", "packages.txt")


def requirements() -> str:
    """What the page needs besides Gradio, which the Space brings: the package's own requirements and its capture's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return "\n".join([*project["dependencies"], *project["optional-dependencies"]["capture"], "spaces"]) + "\n"


def assemble(folder: Path) -> None:
    """Puts together a Space; FOLDER must be empty or not be there."""
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"FOLDER has to be empty or new, but is not: {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        copy = shutil.copytree if (HERE / name).is_dir() else shutil.copyfile
        copy(HERE / name, folder / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "diffusers_dreamactor", folder / "diffusers_dreamactor", ignore=ignored)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    (folder / "requirements.txt").write_text(requirements())
    header = (HERE / "README.md").read_text()
    (folder / "README.md").write_text(header.replace("GRADIO_VERSION", gradio.__version__))


def draw_gallery() -> None:
    """The moving thumbnails: what a click on them performs, by the bundled model."""
    import numpy as np
    from app import GALLERY, studio
    from PIL import Image
    from studio import Request, Sampling, Visit, _save_moving

    from diffusers_dreamactor.media import VideoReader

    config = studio.pipe.config
    for name, (avatar, motion) in GALLERY.items():
        request = Request(
            str(studio.avatars[avatar]),
            "Bundled motion" if motion else "Speech",
            motion or "talk",
            speech=str(studio.speech),
        )
        inputs, visit = studio.prepare(request), Visit()
        sampling = Sampling(config.num_inference_steps, config.guidance_scale)
        for film in studio.animate(inputs, sampling, visit, visit.ask(), lambda share, sentence: None):
            last = film
        step = max(1, round(inputs.fps / 12))
        # the thumbnails are square: what stands beside a tall picture is its edge
        edge = (inputs.height - inputs.width) // 2
        wide = [np.pad(frame, ((0, 0), (edge, edge), (0, 0)), mode="edge") for frame in VideoReader(last.film)]
        frames = [Image.fromarray(frame).resize((128, 128), Image.Resampling.BICUBIC) for frame in wide]
        _save_moving(frames[::step], inputs.fps / step, HERE / "gallery" / f"{name.replace(' ', '-')}.webp")
        visit.close()
        print(f"drew {name}", flush=True)


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where the Space is put together")
    parser.add_argument("--to", help="USER/NAME of the Space to upload to")
    parser.add_argument("--gallery", action="store_true", help="draw the thumbnails anew")
    arguments = parser.parse_args()
    if arguments.gallery:
        draw_gallery()
    if arguments.folder is None:
        return
    assemble(arguments.folder)
    if arguments.to:
        from huggingface_hub import create_repo, upload_folder

        create_repo(arguments.to, repo_type="space", space_sdk="gradio", exist_ok=True)
        upload_folder(repo_id=arguments.to, repo_type="space", folder_path=arguments.folder)


if __name__ == "__main__":
    main()
