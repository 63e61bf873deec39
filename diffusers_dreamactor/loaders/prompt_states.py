"""Text states of the usual prompt, made with one layer of the text encoder in memory at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from accelerate.hooks import attach_align_device_hook
from diffusers.pipelines.wan.pipeline_wan_animate import prompt_clean

from diffusers_dreamactor.loaders.shards import WeightReader, shorten


SEQUENCE_LENGTH = 512


class _Float32Weights(Mapping):
    """A text encoder's weights for accelerate's offloading hooks: read when a layer runs, dropped after it."""

    def __init__(self, folder: Path, expected: list[str]):
        reader = WeightReader(folder)
        self._tensors = {key: reader[key].to(torch.float32) for key in reader}
        if "shared.weight" in reader:
            # Saved once for both names.
            self._tensors.setdefault("encoder.embed_tokens.weight", self._tensors["shared.weight"])
        missing = [key for key in expected if key not in self._tensors]
        if missing:
            raise ValueError(f"`{folder}` lacks tensors of the text encoder: {shorten(missing)}.")

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._tensors[key].load()

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@torch.no_grad()
def encode_prompts(source: Path, index: Mapping[str, Any], prompts: list[str]) -> torch.Tensor:
    """
    Text states in float32, with one layer of the text encoder in memory at a time.

    Args:
        source (`Path`): A Diffusers repository with `text_encoder` and `tokenizer`.
        index: Its `model_index.json`.
        prompts (`list[str]`): What is encoded, each on its own.

    Returns:
        `torch.Tensor` of shape `(prompts, 512, text_dim)`, zeros after a prompt's last token, as Wan was trained.
    """
    for name in ("text_encoder", "tokenizer"):
        if index.get(name, (None, None))[0] != "transformers" or not (source / name).is_dir():
            raise OSError(f"`{source}` has no `{name}`, which encodes the prompt that is stored in the repository.")
    tokenizer = getattr(transformers, index["tokenizer"][1]).from_pretrained(source / "tokenizer")
    encoder_class = getattr(transformers, index["text_encoder"][1])
    config = encoder_class.config_class.from_pretrained(source / "text_encoder")
    with init_empty_weights():
        text_encoder = encoder_class(config).eval()
    weights = _Float32Weights(source / "text_encoder", list(text_encoder.state_dict()))
    attach_align_device_hook(text_encoder, execution_device="cpu", offload=True, weights_map=weights)

    # Padding changes nothing but the time: 512 tokens a prompt take minutes where the few that it has take seconds.
    inputs = tokenizer(
        [prompt_clean(prompt) for prompt in prompts],
        padding="longest",
        max_length=SEQUENCE_LENGTH,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    # The table of words is by far the largest tensor (4.2 GB in float32), of which prompts take a few rows.
    reader = WeightReader(source / "text_encoder", mapped=True)
    table = reader["shared.weight" if "shared.weight" in reader else "encoder.embed_tokens.weight"].load()
    words, places = inputs.input_ids.unique(return_inverse=True)
    embeds = table[words].to(torch.float32)[places]
    states = text_encoder(inputs_embeds=embeds, attention_mask=inputs.attention_mask).last_hidden_state
    states = states * inputs.attention_mask.unsqueeze(-1)
    return torch.nn.functional.pad(states, (0, 0, 0, SEQUENCE_LENGTH - states.shape[1]))
