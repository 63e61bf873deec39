"""What the pages of the documentation show is run: Python as it is written, commands as far as their arguments go."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict

from diffusers_dreamactor import DreamActorPipeline
from diffusers_dreamactor.batch import read_manifest, row_words
from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline
from diffusers_dreamactor.cli import main
from diffusers_dreamactor.cli.arguments import add_animate_arguments, build_parser
from diffusers_dreamactor.media import VideoReader, save_video

from .conversion.conftest import make_wan_animate
from .motion.test_bvh import write_bvh
from .motion.test_openpose import film, openpose_person, write_folder
from .test_readme import folder as readme_folder  # noqa: F401


ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in [*ROOT.glob("docs/*.md")]}
PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    (f"{page}:{text[: match.start()].count(chr(10)) + 1}", match[1], match[2])
    for page, text in sorted(PAGES.items())
    for match in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
]
# README: its own tests run the rows and the table; its step-distillation LoRA would be fetched from the Hub.
NEEDS_THE_HUB = "use_few_steps(pipe)"


def blocks(*languages: str):
    chosen = [block for block in BLOCKS if block[1] in languages]
    return [pytest.param(code, id=where) for where, _, code in chosen]


@pytest.fixture(scope="module")
def folder(readme_folder) -> Path:  # noqa: F811
    """The files that the pages name, and small random repositories where they name large ones."""
    folder = readme_folder
    pipe = random_pipeline()
    pipe.register_to_config(num_inference_steps=1, guidance_scale=1.0, segment_frames=9)
    pipe.save_pretrained(folder / "path/or/hub-id")
    make_wan_animate(rope_max_seq_len=128).save_pretrained(folder / "Wan-AI/Wan2.2-Animate-14B-Diffusers")
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="style")
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="style")
    DreamActorPipeline.save_lora_weights(folder / "lora", transformer_lora_layers=layers)
    write_bvh(folder / "walk.bvh")
    filmed = film(num_frames=3)
    write_folder(folder / "keypoints", [[openpose_person(filmed, frame)] for frame in range(3)])
    save_video(list(VideoReader(folder / "driver.mp4")), folder / "mask.mp4", 12)
    rows = next(code for where, _, code in BLOCKS if where.startswith("docs/batch.md") and code.startswith("{"))
    (folder / "manifest.jsonl").write_text(rows)
    return folder


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs_as_it_is_written(folder, monkeypatch, code):
    if NEEDS_THE_HUB in code:
        pytest.skip("fetches a LoRA from the Hub; tests/conversion/test_few_steps.py runs its parts")
    monkeypatch.chdir(folder)
    code = code.replace('.to("cuda")', '.to("cpu")').replace("torch.bfloat16", "torch.float32")
    before = torch.get_num_threads()
    exec(compile(code, "documentation", "exec"), {"__name__": "documentation"})
    assert torch.get_num_threads() == before
    for written in re.findall(r'save\("([^"]+)"', code):
        assert (folder / written).stat().st_size > 0
    shutil.rmtree(folder / "results", ignore_errors=True)


def commands(code: str) -> list[list[str]]:
    """The lines of a block, without comments and redirections."""
    lines = (line.partition(" > ")[0].replace(" && ", "\n") for line in code.splitlines())
    return [shlex.split(line, comments=True) for block in lines for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("code", blocks("bash", "shell"))
def test_commands_are_those_that_there_are(capsys, code):
    for words in commands(code):
        if words[0] == "accelerate":
            position = next(i for i, word in enumerate(words) if word == "-m" or word.endswith(".py"))
            words = words[position + 1 :] if words[position] == "-m" else ["python", *words[position:]]
            words = ["dreamactor", *words[1:]] if words[0] == "diffusers_dreamactor.cli" else words
        if words[0] == "dreamactor" and ("--help" in words or "--print-completion" in words):
            if "--print-completion" in words:
                pytest.importorskip("shtab")
            with pytest.raises(SystemExit) as stopped:
                main(words[1:])
            assert stopped.value.code == 0
        elif words[0] == "dreamactor":
            assert build_parser().parse_args(words[1:]).command == words[1]
        elif words[0] == "python" and words[1].endswith(".py"):
            script = (ROOT / words[1]).read_text(encoding="utf-8")
            assert all(f'"{word}"' in script for word in words if word.startswith("--"))
        else:
            assert words[0] == "pip" or words[:3] == ["python", "-m", "pytest"]


@pytest.mark.parametrize("code", blocks("json"))
def test_manifests_are_rows_of_the_command(tmp_path, code):
    import argparse

    (tmp_path / "manifest.jsonl").write_text(code)
    parser = argparse.ArgumentParser()
    add_animate_arguments(parser)
    rows = read_manifest(tmp_path / "manifest.jsonl")
    assert len(rows) == len(code.strip().splitlines())
    for row in rows:
        assert row.error is None and json.dumps(row.options)
        parser.parse_args([*row_words(row.options), "--output=out.mp4"])


def test_commands_within_sentences_are_those_that_there_are():
    for page, text in PAGES.items():
        for line in re.findall(r"`dreamactor ([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S)):
            words = shlex.split(line)
            known = build_parser().format_help()
            assert words[0] in known or words[0].startswith("--"), (page, line)
            if len(words) > 2 and "--output" in words:
                assert build_parser().parse_args(words).command == words[0], (page, line)


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(Path(page).name for page in PAGES if page.startswith("docs/"))
