"""Wan-Animate's weights in our classes and back, and what happens to a source that is broken."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import WanAnimateTransformer3DModel
from safetensors.torch import load_file, save_file

from diffusers_dreamactor import DreamActorPipeline
from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.models.face_motion_encoder import FaceMotionEncoder
from diffusers_dreamactor.models.prompt_embedding import PromptEmbedding
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel

from ..processes import ScriptProcess
from .conftest import TRANSFORMER_CONFIG, make_wan_animate


SCRIPT = Path(__file__).parents[2] / "conversion" / "convert_wan_animate.py"


def transformer_inputs(config, batch_size=2, num_latent_frames=3, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    frames, size = 4 * (num_latent_frames - 1) + 1, config.motion_encoder_size
    return {
        "hidden_states": randn(batch_size, config.in_channels, num_latent_frames + 1, 4, 6),
        "timestep": torch.tensor([999.0, 37.0])[:batch_size],
        "encoder_hidden_states": randn(batch_size, 512, config.text_dim),
        "encoder_hidden_states_image": randn(batch_size, 5, config.image_dim),
        "pose_hidden_states": randn(batch_size, config.latent_channels, num_latent_frames, 4, 6),
        "face_pixel_values": randn(batch_size, 3, frames, size, size),
    }


@torch.no_grad()
def largest_difference(source: WanAnimateTransformer3DModel, repository: Path) -> tuple[float, float]:
    """Largest absolute difference of the two transformers' predictions, and the largest value of the source's."""
    transformer = DreamActorTransformer3DModel.from_pretrained(repository / "transformer").eval()
    face_motion_encoder = FaceMotionEncoder.from_pretrained(repository / "face_motion_encoder").eval()
    inputs = transformer_inputs(source.config)
    expected = source(**inputs).sample
    motion = face_motion_encoder(inputs.pop("face_pixel_values").transpose(1, 2))
    actual = transformer(**inputs, motion_hidden_states=motion, num_stream_references=1).sample
    return (actual - expected).abs().max().item(), expected.abs().max().item()


def state_dict_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def config_of(folder: Path) -> dict:
    """A model's config without the entries that Diffusers adds."""
    return {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k[0] != "_"}


# What Diffusers' names are called in Wan's own code, `wan/modules/model.py` and `wan/modules/animate/`.
ORIGINAL_NAMES = (
    (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"(blocks\.\d+)\.scale_shift_table", r"\1.modulation"),
    (r"(blocks\.\d+)\.norm2", r"\1.norm3"),
    (r"ffn\.net\.0\.proj", "ffn.0"),
    (r"ffn\.net\.2", "ffn.2"),
    (r"attn1", "self_attn"),
    (r"attn2", "cross_attn"),
    (r"add_([kv])_proj", r"\1_img"),
    (r"norm_added_k", "norm_k_img"),
    (r"_attn\.to_([qkv])\.", r"_attn.\1."),
    (r"_attn\.to_out\.0", "_attn.o"),
    (r"face_adapter\.(\d+)\.to_q", r"face_adapter.fuser_blocks.\1.linear1_q"),
    (r"face_adapter\.(\d+)\.to_out", r"face_adapter.fuser_blocks.\1.linear2"),
    (r"face_adapter\.(\d+)\.norm_([qk])", r"face_adapter.fuser_blocks.\1.\2_norm"),
    (r"face_encoder\.(conv1_local|conv2|conv3)", r"face_encoder.\1.conv"),
    (r"motion_encoder\.motion_synthesis_weight", "motion_encoder.dec.direction.weight"),
    (r"motion_encoder\.motion_network", "motion_encoder.enc.fc"),
    (r"motion_encoder\.conv_in\.act_fn", "motion_encoder.enc.net_app.convs.0.1"),
    (r"motion_encoder\.conv_in", "motion_encoder.enc.net_app.convs.0.0"),
    (r"motion_encoder\.conv_out", "motion_encoder.enc.net_app.convs.8"),
)


def original_state_dict(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A `WanAnimateTransformer3DModel`'s tensors as Wan's own code names and shapes them."""
    original = {}
    for key, tensor in tensors.items():
        if match := re.fullmatch(r"face_adapter\.(\d+)\.to_([kv])\.(\w+)", key):
            if match[2] == "k":
                value = tensors[f"face_adapter.{match[1]}.to_v.{match[3]}"]
                original[f"face_adapter.fuser_blocks.{match[1]}.linear1_kv.{match[3]}"] = torch.cat([tensor, value])
            continue
        if match := re.fullmatch(r"motion_encoder\.res_blocks\.(\d+)\.(conv1|conv2|conv_skip)\.(.+)", key):
            # A layer is a sequence of blur (where it downsamples), convolution and activation.
            first = 0 if match[2] == "conv1" else 1
            place = first if match[3] == "weight" else first + 1
            layer = f"motion_encoder.enc.net_app.convs.{int(match[1]) + 1}.{match[2].removeprefix('conv_')}"
            name = f"{layer}.{place}.{match[3].removeprefix('act_fn.')}"
            original[f"{layer}.0.kernel"] = torch.ones(4, 4)
            if match[2] == "conv1":
                del original[f"{layer}.0.kernel"]
        else:
            name = key
            for pattern, replacement in ORIGINAL_NAMES:
                name = re.sub(pattern, replacement, name)
        original[name] = tensor[None, :, None, None] if "act_fn.bias" in key else tensor
    return {name: tensor.contiguous() for name, tensor in original.items()}


def assert_same_tensors(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        assert actual[key].dtype == expected[key].dtype, key
        assert torch.equal(actual[key], expected[key]), key


class TestWeights:
    def test_transformer_predicts_the_same(self, wan_animate, converted):
        difference, largest = largest_difference(wan_animate.transformer, converted)
        assert largest > 0.1
        assert difference <= 1e-5

    def test_face_attention_is_where_the_source_has_it(self, converted):
        keys = state_dict_of(converted / "transformer").keys()
        assert {key.split(".")[1] for key in keys if ".face_attn." in key} == {"0", "2"}
        assert not any("ref_attn" in key or "motion_encoder" in key for key in keys)

    def test_back_is_bit_for_bit(self, wan_animate_source, converted, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_animate import convert_back

        convert_back(str(converted), tmp_path / "back")
        source = wan_animate_source / "transformer"
        assert_same_tensors(state_dict_of(tmp_path / "back"), state_dict_of(source))
        assert config_of(tmp_path / "back") == config_of(source)

    def test_vae_is_the_source_s_as_ours(self, wan_animate, wan_animate_source, converted):
        vae = DreamActorVAE.from_pretrained(converted / "vae")
        assert_same_tensors(state_dict_of(converted / "vae"), state_dict_of(wan_animate_source / "vae"))
        assert config_of(converted / "vae") == config_of(wan_animate_source / "vae")
        video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
        with torch.no_grad():
            expected = wan_animate.vae.encode(video).latent_dist.mode()
            assert torch.allclose(vae.denormalize_latents(vae.encode_video(video)), expected, atol=1e-5)

    def test_carried_over_components_are_the_same_files(self, wan_animate_source, converted):
        for name in ("scheduler", "image_encoder", "image_processor"):
            files = {path.name: path.read_bytes() for path in (wan_animate_source / name).iterdir()}
            assert files == {path.name: path.read_bytes() for path in (converted / name).iterdir()}
        assert not (converted / "text_encoder").exists() and not (converted / "tokenizer").exists()

    def test_stored_prompt_is_what_the_source_encodes(self, wan_animate, converted):
        embedding = PromptEmbedding.from_pretrained(converted / "prompt_embedding")
        prompt = "视频中的人在做动作"
        with torch.no_grad():
            expected, negative = wan_animate.encode_prompt(prompt, max_sequence_length=512)
        assert embedding.config.prompt == prompt
        assert torch.allclose(embedding(), expected, atol=1e-6)
        assert torch.allclose(embedding(negative=True), negative, atol=1e-6)
        assert not torch.allclose(expected, negative)

    def test_dtype_leaves_what_the_model_keeps_in_float32(self, wan_animate_source, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_animate import convert

        convert(str(wan_animate_source), tmp_path / "bf16", torch.bfloat16, keep_text_encoder=True)
        tensors = state_dict_of(tmp_path / "bf16" / "transformer")
        kept = {key for key, tensor in tensors.items() if tensor.dtype == torch.float32}
        expected = {
            name
            for name, parameter in DreamActorTransformer3DModel.from_pretrained(
                tmp_path / "bf16" / "transformer", torch_dtype=torch.bfloat16
            ).named_parameters()
            if parameter.dtype == torch.float32
        }
        assert kept == expected and 0 < len(kept) < len(tensors)
        for name, dtype in (
            ("image_encoder", torch.bfloat16),
            ("text_encoder", torch.bfloat16),
            ("vae", torch.float32),
        ):
            assert {tensor.dtype for tensor in state_dict_of(tmp_path / "bf16" / name).values()} == {dtype}
        assert (tmp_path / "bf16" / "tokenizer" / "tokenizer_config.json").exists()

    @pytest.mark.skipif(
        "DREAMACTOR_CAPTURE_MODELS" not in os.environ,
        reason="MediaPipe's models are not here (DREAMACTOR_CAPTURE_MODELS)",
    )
    def test_capture_models_become_part_of_the_repository(self, wan_animate_source, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_animate import convert

        models = Path(os.environ["DREAMACTOR_CAPTURE_MODELS"])
        convert(str(wan_animate_source), tmp_path / "out", capture_models=models)
        assert {file.name: file.stat().st_size for file in (tmp_path / "out" / "capture").glob("*.task")} == {
            file.name: file.stat().st_size for file in models.glob("*.task")
        }
        pipeline = DreamActorPipeline.from_pretrained(tmp_path / "out")
        assert type(pipeline.capture).__name__ == "MediaPipeCapture"

    def test_face_size_and_area_are_the_weights_own(self, converted):
        config = json.loads((converted / "motion_processor" / "processor_config.json").read_text())
        assert (config["style"], config["face_size"], config["area"]) == ("wan", 16, 832 * 480)


class TestOriginalNaming:
    @pytest.fixture(scope="class")
    def original(self, tmp_path_factory):
        """A Wan-Animate transformer under the names of Wan's own code, one file, and the repository beside it."""
        channels = {str(2**i): 2 + i for i in range(2, 10)}
        folder = tmp_path_factory.mktemp("original")
        pipeline = make_wan_animate(motion_encoder_size=512, motion_encoder_channel_sizes=channels, num_layers=2)
        pipeline.save_pretrained(folder / "diffusers")
        tensors = original_state_dict(pipeline.transformer.state_dict())
        save_file(tensors, folder / "wan_animate.safetensors")
        return pipeline.transformer, tensors, folder

    def test_single_file(self, original, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_animate import convert, convert_back

        transformer, tensors, folder = original
        assert (
            "blocks.1.cross_attn.k_img.weight" in tensors and "face_adapter.fuser_blocks.0.linear1_kv.bias" in tensors
        )
        convert(str(folder / "wan_animate.safetensors"), tmp_path / "out", components=str(folder / "diffusers"))
        convert_back(str(tmp_path / "out"), tmp_path / "back")
        assert_same_tensors(state_dict_of(tmp_path / "back"), transformer.state_dict())
        # The rotary table's length is the one thing that shapes do not tell: every Wan model has 1024.
        expected = config_of(folder / "diffusers" / "transformer") | {"rope_max_seq_len": 1024}
        assert config_of(tmp_path / "back") == expected

    def test_prefixed_folder_with_pickles_beside_it(self, original, tmp_path):
        """The original repository brings VAE and text encoder as `.pth`; the transformer is what is read."""
        from diffusers_dreamactor.conversion.convert_wan_animate import read_transformer

        transformer, tensors, _ = original
        (tmp_path / "repo").mkdir()
        prefixed = {f"model.diffusion_model.{key}": tensor for key, tensor in tensors.items()}
        save_file(prefixed, tmp_path / "repo" / "diffusion_pytorch_model.safetensors")
        (tmp_path / "repo" / "Wan2.1_VAE.pth").write_bytes(b"never read")
        _, converted, _ = read_transformer(tmp_path / "repo")
        assert_same_tensors({key: tensor.load() for key, tensor in converted.items()}, transformer.state_dict())

    def test_plain_wan_is_declined(self, original, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_animate import read_transformer

        parts = ("motion_encoder", "face_adapter", "face_encoder", "pose_patch")
        plain = {key: tensor for key, tensor in original[1].items() if not key.startswith(parts)}
        save_file(plain, tmp_path / "wan.safetensors")
        with pytest.raises(ValueError, match="without motion encoder.*convert_wan_i2v.py"):
            read_transformer(tmp_path / "wan.safetensors")


class TestBrokenSources:
    @pytest.fixture
    def source(self, wan_animate_source, tmp_path) -> Path:
        return shutil.copytree(wan_animate_source, tmp_path / "source")

    @pytest.fixture
    def error_of(self, source, tmp_path):
        """Converts, which has to fail, and gives the message; nothing may be left behind."""
        from diffusers_dreamactor.conversion.convert_wan_animate import convert

        def error_of(error: type[Exception]) -> str:
            with pytest.raises(error) as raised:
                convert(str(source), tmp_path / "output" / "repository")
            assert not list((tmp_path / "output").glob("*")) and not list((tmp_path / "output").glob(".*"))
            return str(raised.value)

        return error_of

    def test_missing_shard(self, source, error_of):
        shards = sorted((source / "transformer").glob("*.safetensors"))
        assert len(shards) > 3
        shards[1].unlink()
        message = error_of(OSError)
        assert shards[1].name in message and shards[0].name not in message

    @pytest.mark.parametrize("kept", [0.5, 0.0001, 0.0])
    @pytest.mark.parametrize("component", ["transformer", "vae", "image_encoder", "text_encoder"])
    def test_truncated_file(self, source, error_of, component, kept):
        file = sorted((source / component).glob("*.safetensors"))[0]
        os.truncate(file, int(file.stat().st_size * kept))
        message = error_of(OSError)
        assert str(file) in message and "truncated" in message

    def test_tensor_missing_from_its_shard(self, source, error_of):
        file = sorted((source / "transformer").glob("*.safetensors"))[0]
        tensors = load_file(file)
        lost = tensors.pop(sorted(tensors)[0])
        assert lost is not None
        save_file(tensors, file, metadata={"format": "pt"})
        assert file.name in error_of(OSError)

    @pytest.mark.parametrize("component", ["transformer", "vae"])
    def test_unknown_key(self, source, error_of, component):
        for file in (source / component).glob("*.index.json"):
            index = json.loads(file.read_text())
            index["weight_map"]["blocks.0.mystery.weight"] = sorted(set(index["weight_map"].values()))[0]
            file.write_text(json.dumps(index))
        file = sorted((source / component).glob("*.safetensors"))[0]
        save_file(load_file(file) | {"blocks.0.mystery.weight": torch.zeros(2)}, file)
        assert "`blocks.0.mystery.weight`" in error_of(ValueError)

    def test_lacking_tensor_and_other_shape(self, source, error_of):
        file = source / "vae" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        save_file({key: tensor for key, tensor in tensors.items() if key != "quant_conv.bias"}, file)
        assert "lacks" in (message := error_of(ValueError)) and "`quant_conv.bias`" in message
        save_file(tensors | {"quant_conv.bias": torch.zeros(5)}, file)
        assert "(5,)" in error_of(ValueError)

    @pytest.mark.parametrize("component", ["transformer", "vae", "image_encoder"])
    def test_pickle_is_never_unpickled(self, source, error_of, component, tmp_path):
        trace = tmp_path / "unpickled"
        for file in (source / component).glob("*.safetensors*"):
            file.unlink()
        torch.save({"weight": Bomb(str(trace))}, source / component / "diffusion_pytorch_model.bin")
        message = error_of(OSError)
        assert "diffusion_pytorch_model.bin" in message and "safetensors" in message
        assert not trace.exists()

    def test_pickle_named_safetensors(self, source, error_of, tmp_path):
        trace = tmp_path / "unpickled"
        file = source / "vae" / "diffusion_pytorch_model.safetensors"
        torch.save({"weight": Bomb(str(trace))}, file)
        assert str(file) in error_of(OSError)
        assert not trace.exists()

    def test_other_pipeline(self, source, error_of):
        index = json.loads((source / "model_index.json").read_text())
        (source / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanImageToVideoPipeline"}))
        assert "WanImageToVideoPipeline" in (message := error_of(ValueError)) and "WanAnimatePipeline" in message

    def test_other_transformer(self, source, error_of):
        config = json.loads((source / "transformer" / "config.json").read_text())
        (source / "transformer" / "config.json").write_text(
            json.dumps(config | {"_class_name": "WanVACETransformer3DModel"})
        )
        assert "WanVACETransformer3DModel" in error_of(ValueError)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("pos_embed_seq_len", 514), ("added_kv_proj_dim", None), ("inject_face_latents_blocks", 3), ("ffn_dim", 64)],
    )
    def test_architectures_without_a_place(self, source, error_of, name, value):
        config = json.loads((source / "transformer" / "config.json").read_text())
        (source / "transformer" / "config.json").write_text(json.dumps(config | {name: value}))
        message = error_of(ValueError)
        assert name in message or name == "ffn_dim" and "ffn.net.0.proj" in message

    def test_broken_json(self, source, error_of):
        (source / "model_index.json").write_text('{"_class_name": "Wan')
        assert "model_index.json" in error_of(OSError)

    def test_missing_component(self, source, error_of):
        shutil.rmtree(source / "tokenizer")
        assert "`tokenizer`" in error_of(OSError)

    def test_output_is_never_overwritten(self, source, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_animate import convert

        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="--output"):
            convert(str(source), tmp_path / "full")
        assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]

    def test_no_such_source(self, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_animate import convert

        with pytest.raises(OSError, match="no such folder"):
            convert(str(tmp_path / "nowhere"), tmp_path / "output")

    def test_only_wan_animate_converts_back(self, converted, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_animate import convert_back

        source = shutil.copytree(converted, tmp_path / "source")
        index = json.loads((source / "model_index.json").read_text())
        (source / "model_index.json").write_text(json.dumps(index | {"_class_name": "DreamActorPipeline"}))
        with pytest.raises(
            ValueError, match="a repository of DreamActorPipeline, but DreamActorWanAnimatePipeline is accepted"
        ):
            convert_back(str(source), tmp_path / "output")
        assert not (tmp_path / "output").exists()


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, trace: str):
        self.trace = trace

    def __reduce__(self):
        return open, (self.trace, "w")


# VmHWM is the process's peak of resident memory, pages of mapped files included; writing 5 resets it.
MEASURE = """
import re
import sys
from pathlib import Path

from diffusers_dreamactor.conversion.convert_wan_animate import convert


def peak() -> int:
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024


Path("/proc/self/clear_refs").write_text("5")
before = peak()
convert(sys.argv[1], Path(sys.argv[2]))
print(peak() - before)
"""


class TestLargeSource:
    """About 280 MB in shards of 30 MB, converted by the script itself in a process of its own."""

    SHARD_MEGABYTES = 30

    @pytest.fixture(scope="class")
    def source(self, wan_animate_source, tmp_path_factory) -> Path:
        folder = shutil.copytree(wan_animate_source, tmp_path_factory.mktemp("large") / "source")
        shutil.rmtree(folder / "transformer")
        config = {"num_attention_heads": 4, "attention_head_dim": 128, "added_kv_proj_dim": 512, "ffn_dim": 2048}
        transformer = WanAnimateTransformer3DModel(**(TRANSFORMER_CONFIG | config | {"num_layers": 14}))
        transformer.save_pretrained(folder / "transformer", max_shard_size=f"{self.SHARD_MEGABYTES}MB")
        return folder

    def test_memory_stays_below_two_shards(self, source, tmp_path):
        shards = [file.stat().st_size for file in (source / "transformer").glob("*.safetensors")]
        assert sum(shards) > 250e6 and max(shards) <= 1e6 * self.SHARD_MEGABYTES
        (tmp_path / "measure.py").write_text(MEASURE)
        peak = int(ScriptProcess(tmp_path / "measure.py", source, tmp_path / "output").finish().split()[-1])
        assert 0 < peak < 2 * max(shards) + 64e6
        written = [file.stat().st_size for file in (tmp_path / "output" / "transformer").glob("*.safetensors")]
        assert max(written) <= max(shards) and sum(written) == pytest.approx(sum(shards), rel=1e-3)

    def test_interrupted_conversion_leaves_nothing(self, source, tmp_path):
        output = tmp_path / "deep" / "output"
        process = ScriptProcess(SCRIPT, "--source", source, "--output", output)
        while process.runs and not list(output.parent.glob(".output.*.part/transformer/*")):
            time.sleep(0.01)
        assert process.runs, process.finish()
        process.send_signal(signal.SIGTERM)
        process.finish(143)
        assert list(output.parent.iterdir()) == []


class TestCommandLine:
    @pytest.fixture
    def run_script(self, monkeypatch):
        """Runs the script's `main` as its last line does, in this process: importing everything anew takes long."""
        from diffusers_dreamactor.conversion.convert_wan_animate import main
        from diffusers_dreamactor.conversion.repository import run

        handler = signal.getsignal(signal.SIGTERM)

        def run_script(*arguments) -> str | None:
            monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
            try:
                run(main)
            except SystemExit as exit:
                return exit.code
            finally:
                signal.signal(signal.SIGTERM, handler)

        return run_script

    def test_converts_and_converts_back(self, run_script, wan_animate_source, tmp_path, capfd):
        assert not run_script("--source", wan_animate_source, "--output", tmp_path / "out", "--keep-text-encoder")
        progress = capfd.readouterr().err
        assert "DreamActorTransformer3DModel" in progress and "100%" in progress
        index = json.loads((tmp_path / "out" / "model_index.json").read_text())
        assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]
        assert index["prompt_embedding"] == ["diffusers_dreamactor", "PromptEmbedding"]
        assert index["pose_encoder"] == [None, None]
        assert not run_script("--reverse", "--source", tmp_path / "out", "--output", tmp_path / "back")
        assert_same_tensors(state_dict_of(tmp_path / "back"), state_dict_of(wan_animate_source / "transformer"))

    def test_error_is_one_line(self, run_script, wan_animate_source, tmp_path):
        error = run_script("--source", wan_animate_source / "vae", "--output", tmp_path / "out")
        assert error.startswith("error: ") and "AutoencoderKLWan" in error and "\n" not in error
