"""Small random source models, of Diffusers' own classes, saved as their own pipelines save them."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)


# The scripts run from a checkout: `python conversion/convert_wan_animate.py` has that folder first on its path.
CONVERSION = Path(__file__).parents[2] / "conversion"
sys.path.insert(0, str(CONVERSION))

TRANSFORMER_CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 4,
    "image_dim": 8,
    "added_kv_proj_dim": 24,
    "rope_max_seq_len": 32,
    "motion_encoder_channel_sizes": {"4": 16, "8": 12, "16": 8},
    "motion_encoder_size": 16,
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 10,
    "face_encoder_hidden_dim": 16,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2,
}


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Makes parameters that start at zero or one count: a converter that lost them would go unseen."""
    for parameter in model.parameters():
        if parameter.unique().numel() == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def make_vae(**config) -> AutoencoderKLWan:
    tiny = {
        "base_dim": 4,
        "z_dim": 16,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    }
    return randomise(AutoencoderKLWan(**(tiny | config)))


def make_text_encoder() -> tuple[UMT5EncoderModel, T5Tokenizer]:
    words = ["▁", "▁a", "▁person", "视频", "中的人", "在做", "动作"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [(word, -2.0 - i) for i, word in enumerate(words)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    config = UMT5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0)
    return randomise(UMT5EncoderModel(config)), tokenizer


def make_image_encoder() -> tuple[CLIPVisionModel, CLIPImageProcessor]:
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=8,
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return randomise(CLIPVisionModel(config)), processor


def make_wan_animate(**transformer_config) -> WanAnimatePipeline:
    """A `WanAnimatePipeline` with all its components, seeded."""
    torch.manual_seed(0)
    text_encoder, tokenizer = make_text_encoder()
    image_encoder, image_processor = make_image_encoder()
    return WanAnimatePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=make_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        image_processor=image_processor,
        image_encoder=image_encoder,
        transformer=randomise(WanAnimateTransformer3DModel(**(TRANSFORMER_CONFIG | transformer_config))),
    )


@pytest.fixture(scope="session")
def wan_animate() -> WanAnimatePipeline:
    """The source pipeline; tests do not change it."""
    return make_wan_animate()


@pytest.fixture(scope="session")
def wan_animate_source(wan_animate, tmp_path_factory) -> Path:
    """Its repository, with a transformer in several shards."""
    folder = tmp_path_factory.mktemp("source") / "wan-animate"
    wan_animate.save_pretrained(folder)
    for file in (folder / "transformer").glob("*.safetensors"):
        file.unlink()
    wan_animate.transformer.save_pretrained(folder / "transformer", max_shard_size="60KB")
    return folder


@pytest.fixture(scope="session")
def converted(wan_animate_source, tmp_path_factory) -> Path:
    """The converted repository; tests do not change it."""
    from diffusers_dreamactor.conversion.convert_wan_animate import convert

    output = tmp_path_factory.mktemp("converted") / "dreamactor"
    convert(str(wan_animate_source), output)
    return output
