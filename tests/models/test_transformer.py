"""DreamActorTransformer3DModel against Diffusers' Wan models, and as a citizen of Diffusers."""

import json

import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    TaylorSeerCacheConfig,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
)
from peft import LoraConfig
from torch._dynamo.utils import counters

from diffusers_dreamactor.models.condition_cache import BlockConditionCache, ConditionCache
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel


FACE_SIZES = {"motion_dim": 20, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2}


class TestWanParity:
    @pytest.mark.parametrize("image_dim", [None, 20])
    @pytest.mark.parametrize("per_token_timestep", [False, True])
    def test_equals_wan_with_the_same_weights(
        self, transformer_sizes, perturb_parameters, image_dim, per_token_timestep
    ):
        added_kv_proj_dim = None if image_dim is None else 48
        wan = WanTransformer3DModel(
            **transformer_sizes,
            in_channels=36,
            out_channels=16,
            text_dim=16,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
        )
        perturb_parameters(wan)
        model = DreamActorTransformer3DModel(
            **transformer_sizes, **FACE_SIZES, text_dim=16, image_dim=image_dim
        ).eval()
        missing, unexpected = model.load_state_dict(wan.state_dict(), strict=False)
        assert not unexpected
        ours = ("ref_attn", "face_attn", "face_encoder", "pose_patch_embedding")
        assert all(any(part in key for part in ours) for key in missing)

        hidden_states = torch.randn(2, 36, 3, 4, 6)
        timestep = torch.rand(2, 18) * 1000 if per_token_timestep else torch.tensor([300.0, 900.0])
        # Wan splits image from text tokens at 512 text tokens.
        text = torch.randn(2, 512, 16)
        image = None if image_dim is None else torch.randn(2, 5, image_dim)
        with torch.no_grad():
            expected = wan(hidden_states, timestep, text, image).sample
            actual = model(
                hidden_states, timestep, encoder_hidden_states=text, encoder_hidden_states_image=image
            ).sample
            # New modules start at zero: pose and face change nothing yet.
            driven = model(
                hidden_states,
                timestep,
                encoder_hidden_states=text,
                encoder_hidden_states_image=image,
                pose_hidden_states=torch.randn(2, 16, 3, 4, 6),
                motion_hidden_states=torch.randn(2, 9, 20),
            ).sample
        assert expected.std() > 0.1
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(driven, expected, atol=1e-5, rtol=0)

    def test_equals_wan_animate_with_references_in_the_stream(self, transformer_sizes, perturb_parameters):
        wan = WanAnimateTransformer3DModel(
            **transformer_sizes,
            in_channels=36,
            latent_channels=16,
            out_channels=16,
            text_dim=16,
            image_dim=20,
            added_kv_proj_dim=48,
            motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
            motion_encoder_size=16,
            motion_style_dim=8,
            motion_dim=4,
            motion_encoder_dim=20,
            face_encoder_hidden_dim=16,
            face_encoder_num_heads=2,
            inject_face_latents_blocks=2,
        )
        # Three layers, an adapter after every second: Diffusers makes one adapter too few.
        wan.face_adapter.append(type(wan.face_adapter[0])(48, 2, 24, cross_attention_dim_head=24))
        perturb_parameters(wan)
        model = DreamActorTransformer3DModel(
            **transformer_sizes,
            **FACE_SIZES,
            text_dim=16,
            image_dim=20,
            face_attention_interval=2,
            reference_attention=False,
        ).eval()
        state_dict = {}
        for key, value in wan.state_dict().items():
            if key.startswith("face_adapter."):
                _, index, rest = key.split(".", 2)
                key = f"blocks.{2 * int(index)}.face_attn.{rest}"
            if not key.startswith("motion_encoder."):
                state_dict[key] = value
        model.load_state_dict(state_dict, strict=True)

        hidden_states, pose = torch.randn(2, 36, 4, 4, 6), torch.randn(2, 16, 3, 4, 6)
        text, image = torch.randn(2, 512, 16), torch.randn(2, 5, 20)
        face = torch.rand(2, 3, 9, 16, 16) * 2 - 1
        timestep = torch.tensor([300.0, 900.0])
        with torch.no_grad():
            expected = wan(hidden_states, timestep, text, image, pose, face).sample
            motion = wan.motion_encoder(face.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 9))
            arguments = {
                "pose_hidden_states": pose,
                "encoder_hidden_states": text,
                "encoder_hidden_states_image": image,
                "num_stream_references": 1,
            }
            actual = model(hidden_states, timestep, motion_hidden_states=motion, **arguments).sample
            faceless = model(hidden_states, timestep, **arguments).sample
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        assert (faceless - expected).abs().max() > 1e-2


class TestConditions:
    @torch.no_grad()
    def test_face_tokens_change_only_their_own_frame(self, make_transformer):
        block = make_transformer().blocks[0]
        generator = torch.Generator().manual_seed(0)
        hidden_states = torch.randn(2, 3 * 6, 48, generator=generator)
        face_tokens = torch.randn(2, 3, 3, 48, generator=generator)
        changed_tokens = face_tokens.clone()
        changed_tokens[:, 1] = torch.randn(2, 3, 48, generator=generator)

        # With self-attention's output projection at zero, frames of a block meet nowhere else.
        torch.nn.init.zeros_(block.attn1.to_out[0].weight)
        rotary_emb = (torch.ones(1, 18, 1, 12), torch.zeros(1, 18, 1, 12))

        def run(tokens):
            return block(
                hidden_states, None, torch.zeros(2, 6, 48), rotary_emb, None, tokens, 1.0, BlockConditionCache(False)
            )

        difference = (run(changed_tokens) - run(face_tokens)).abs().unflatten(1, (3, 6)).amax(dim=(0, 2, 3))
        assert difference[1] > 1e-2
        assert difference[0] == 0 and difference[2] == 0

    @torch.no_grad()
    def test_references_attend_only_to_each_other_and_the_video_to_all(
        self, make_transformer, make_transformer_inputs
    ):
        model = make_transformer()
        inputs = make_transformer_inputs(model)
        output = model(**inputs).sample
        for name in ("reference_hidden_states", "reference_pose_hidden_states"):
            changed = {**inputs, name: inputs[name] + 0.5}
            assert (model(**changed).sample - output).abs().max() > 1e-3

        # The order of references counts (temporal index 0, -1), and their number may be any.
        flipped = {name: value.flip(2) if name.startswith("reference") else value for name, value in inputs.items()}
        assert (model(**flipped).sample - output).abs().max() > 1e-4
        one = {name: value[:, :, :1] if name.startswith("reference") else value for name, value in inputs.items()}
        assert model(**one).sample.shape == output.shape

    @torch.no_grad()
    def test_reference_attention_starts_without_effect(self, make_transformer, make_transformer_inputs):
        torch.manual_seed(0)
        config = {key: value for key, value in make_transformer().config.items() if not key.startswith("_")}
        fresh = DreamActorTransformer3DModel(**config).eval()
        inputs = make_transformer_inputs(fresh)
        expected = fresh(**inputs).sample
        for block in fresh.blocks:
            torch.nn.init.normal_(block.ref_attn.to_q.weight)
            torch.nn.init.normal_(block.ref_attn.to_v.weight)
        # Reference attention's values change nothing while its output projection is zero.
        torch.testing.assert_close(fresh(**inputs).sample, expected, atol=0, rtol=0)
        torch.nn.init.normal_(fresh.blocks[0].ref_attn.to_out[0].weight)
        assert (fresh(**inputs).sample - expected).abs().max() > 1e-3

    @torch.no_grad()
    def test_face_scale_scales_the_face_attention(self, make_transformer, make_transformer_inputs):
        model = make_transformer(num_layers=1)
        inputs = make_transformer_inputs(model)
        without = model(**{**inputs, "motion_hidden_states": None}).sample
        torch.testing.assert_close(model(**inputs, face_scale=0.0).sample, without, atol=1e-6, rtol=0)
        assert (model(**inputs, face_scale=0.5).sample - model(**inputs).sample).abs().max() > 1e-3

    @pytest.mark.parametrize(
        "change, message",
        [
            (
                {"pose_hidden_states": torch.zeros(1, 16, 2, 4, 6)},
                r"`pose_hidden_states` has shape \(1, 16, 2, 4, 6\)",
            ),
            ({"motion_hidden_states": torch.zeros(1, 8, 20)}, r"`motion_hidden_states` .* \(1, 9, 20\) is accepted"),
            (
                {"reference_hidden_states": torch.zeros(1, 16, 2, 4, 6)},
                r"`reference_hidden_states` .* \(1, 36, 2, 4, 6\)",
            ),
            (
                {"reference_hidden_states": torch.zeros(1, 36, 2, 4, 4)},
                r"`reference_hidden_states` .* \(1, 36, 2, 4, 6\)",
            ),
            (
                {"reference_hidden_states": torch.zeros(2, 36, 2, 4, 6)},
                r"`reference_hidden_states` .* \(1, 36, 2, 4, 6\)",
            ),
            ({"reference_hidden_states": torch.zeros(1, 36, 4, 6)}, r"`reference_hidden_states` has shape"),
            (
                {"reference_pose_hidden_states": torch.zeros(1, 16, 1, 4, 6)},
                r"`reference_pose_hidden_states` .* 2, 4, 6",
            ),
            ({"reference_hidden_states": None}, "`reference_pose_hidden_states` was given without"),
            ({"hidden_states": torch.zeros(1, 16, 3, 4, 6)}, r"`hidden_states` .* \(batch, 36, frames"),
            ({"hidden_states": torch.zeros(1, 36, 3, 5, 6)}, "`hidden_states` is 5x6, .* multiples of 2x2"),
            ({"timestep": torch.zeros(3)}, r"`timestep` has shape \(3,\), but \(1,\) or \(1, 18\)"),
            ({"num_stream_references": 3}, "`num_stream_references` is 3, .* accepted is 0 to 2"),
            ({"encoder_hidden_states": None}, "`encoder_hidden_states` is None"),
            ({"encoder_hidden_states": torch.zeros(1, 7, 8)}, r"`encoder_hidden_states` .* \(1, tokens, 16\)"),
            (
                {"encoder_hidden_states_image": torch.zeros(1, 7, 8)},
                "`encoder_hidden_states_image` .* `image_dim` is None",
            ),
        ],
    )
    @torch.no_grad()
    def test_shapes_that_do_not_fit_are_named(self, make_transformer, make_transformer_inputs, change, message):
        model = make_transformer(text_dim=16, num_layers=1)
        with pytest.raises(ValueError, match=message):
            model(**{**make_transformer_inputs(model), **change})

    @torch.no_grad()
    def test_more_frames_than_rotary_positions_are_refused(self, make_transformer, make_transformer_inputs):
        model = make_transformer(rope_max_seq_len=4, num_layers=1)
        with pytest.raises(ValueError, match="`rope_max_seq_len` is 4"):
            model(**make_transformer_inputs(model, num_frames=4))
        with pytest.raises(ValueError, match=r"accepted is \(1, h, w\)"):
            make_transformer(patch_size=(2, 2, 2))


class TestTraining:
    def test_every_parameter_gets_a_gradient_and_checkpointing_the_same(
        self, make_transformer, make_transformer_inputs
    ):
        model = make_transformer(text_dim=16, image_dim=20).train()
        inputs = make_transformer_inputs(model, batch_size=2)

        def gradients():
            model.zero_grad()
            model(**inputs).sample.square().mean().backward()
            return {name: parameter.grad for name, parameter in model.named_parameters()}

        expected = gradients()
        assert [name for name, gradient in expected.items() if gradient is None or gradient.abs().max() == 0] == []
        model.enable_gradient_checkpointing()
        actual = gradients()
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, atol=1e-6, rtol=1e-5, msg=name)

    def test_new_modules_learn_from_zero(self, make_transformer, make_transformer_inputs):
        config = {key: value for key, value in make_transformer().config.items() if not key.startswith("_")}
        model = DreamActorTransformer3DModel(**config)
        model(**make_transformer_inputs(model)).sample.square().mean().backward()
        for module in (
            model.pose_patch_embedding,
            model.blocks[0].ref_attn.to_out[0],
            model.blocks[0].face_attn.to_out,
        ):
            assert module.weight.abs().max() == 0
            assert module.weight.grad.abs().max() > 0

    def test_lora_adapter_changes_the_output_and_scales(self, make_transformer, make_transformer_inputs):
        model = make_transformer(text_dim=16)
        inputs = make_transformer_inputs(model)
        with torch.no_grad():
            expected = model(**inputs).sample
        targets = ["to_q", "to_k", "to_v", "to_out.0", "face_attn.to_out", "ffn.net.0.proj"]
        model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights="gaussian"))
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        for part in ("attn1", "attn2", "ref_attn", "face_attn", "ffn"):
            assert any(f"blocks.0.{part}." in name for name in trainable)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
            adapted = model(**inputs).sample
            half = model(**inputs, attention_kwargs={"scale": 0.5}).sample
            none = model(**inputs, attention_kwargs={"scale": 0.0}).sample
        assert (adapted - expected).abs().max() > 1e-2
        assert (half - adapted).abs().max() > 1e-3
        torch.testing.assert_close(none, expected, atol=1e-5, rtol=0)


class TestDiffusers:
    @torch.no_grad()
    def test_save_and_load_in_shards_and_half_precision(self, tmp_path, make_transformer, make_transformer_inputs):
        model = make_transformer(text_dim=16, image_dim=20)
        inputs = make_transformer_inputs(model)
        expected = model(**inputs).sample

        model.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
        index = json.loads((tmp_path / "sharded" / "diffusion_pytorch_model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 1
        loaded = DreamActorTransformer3DModel.from_pretrained(tmp_path / "sharded")
        assert loaded.config.text_dim == 16 and loaded.config.face_attention_interval == 2
        assert type(loaded).from_config(loaded.config).config.patch_size == loaded.config.patch_size
        torch.testing.assert_close(loaded(**inputs).sample, expected, atol=0, rtol=0)

        half = DreamActorTransformer3DModel.from_pretrained(tmp_path / "sharded", torch_dtype=torch.float16)
        half.save_pretrained(tmp_path / "half", variant="fp16")
        assert (tmp_path / "half" / "diffusion_pytorch_model.fp16.safetensors").exists()
        loaded = DreamActorTransformer3DModel.from_pretrained(
            tmp_path / "half", variant="fp16", torch_dtype=torch.bfloat16
        )
        dtypes = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
        for name, dtype in dtypes.items():
            kept = any(part in name for part in ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"))
            assert dtype == (torch.float32 if kept else torch.bfloat16), name
        inputs = {
            name: value.bfloat16() if isinstance(value, torch.Tensor) and name != "timestep" else value
            for name, value in inputs.items()
        }
        output = loaded(**inputs).sample
        assert output.dtype == torch.bfloat16
        assert (output.float() - expected).abs().max() < 0.15 * expected.abs().max()
        # `.to` converts every parameter, the time embedder too.
        torch.testing.assert_close(model.to(torch.bfloat16)(**inputs).sample.float(), output.float(), atol=0.2, rtol=0)

    @torch.no_grad()
    def test_layerwise_casting(self, make_transformer, make_transformer_inputs):
        model = make_transformer(text_dim=16).to(torch.bfloat16)
        inputs = make_transformer_inputs(model)
        inputs = {
            name: value.bfloat16() if isinstance(value, torch.Tensor) and name != "timestep" else value
            for name, value in inputs.items()
        }
        expected = model(**inputs).sample
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        for part in ("attn1.to_q", "ref_attn.to_k", "face_attn.to_v", "ffn.net.2"):
            assert dtypes[f"blocks.0.{part}.weight"] == torch.float8_e4m3fn
        for name in (
            "pose_patch_embedding.weight",
            "condition_embedder.time_proj.weight",
            "blocks.0.attn1.norm_q.weight",
        ):
            assert dtypes[name] == torch.bfloat16
        output = model(**inputs).sample
        assert 0 < (output - expected).float().abs().max() < 0.3 * expected.float().abs().max()

    @pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
    @torch.no_grad()
    def test_group_offload_with_a_cache(self, make_transformer, make_transformer_inputs, offload_type):
        model = make_transformer(text_dim=16)
        inputs = make_transformer_inputs(model)
        expected = model(**inputs).sample
        model.enable_group_offload(
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type=offload_type,
            num_blocks_per_group=1 if offload_type == "block_level" else None,
        )
        cache = ConditionCache()
        for _ in range(2):
            torch.testing.assert_close(model(**inputs, condition_cache=cache).sample, expected, atol=1e-5, rtol=0)
        assert cache.has_references()

    @torch.no_grad()
    def test_attention_backend_and_fused_projections(self, make_transformer, make_transformer_inputs):
        model = make_transformer(text_dim=16, image_dim=20)
        inputs = make_transformer_inputs(model)
        expected = model(**inputs).sample
        processors = model.attn_processors
        assert len(processors) == 3 * 3 + 2
        model.set_attention_backend("_native_math")
        assert {processor._attention_backend.value for processor in processors.values()} == {"_native_math"}
        torch.testing.assert_close(model(**inputs).sample, expected, atol=1e-5, rtol=0)
        model.set_attention_backend("native")
        torch.testing.assert_close(model(**inputs).sample, expected, atol=1e-5, rtol=0)
        model.reset_attention_backend()

        model.fuse_qkv_projections()
        assert model.blocks[0].attn1.to_qkv.weight.shape == (144, 48)
        cache = ConditionCache()
        for _ in range(2):
            torch.testing.assert_close(model(**inputs, condition_cache=cache).sample, expected, atol=1e-5, rtol=0)
        model.unfuse_qkv_projections()
        torch.testing.assert_close(model(**inputs).sample, expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("with_condition_cache", [True, False])
    @pytest.mark.parametrize(
        "config, skips",
        [
            (FirstBlockCacheConfig(threshold=-1.0), 0),
            (FirstBlockCacheConfig(threshold=1e6), 3),
            (
                MagCacheConfig(
                    threshold=10.0, max_skip_steps=3, retention_ratio=0.25, num_inference_steps=4, mag_ratios=[1.0] * 4
                ),
                3,
            ),
            (
                TaylorSeerCacheConfig(
                    cache_interval=2,
                    disable_cache_before_step=1,
                    max_order=1,
                    taylor_factors_dtype=torch.float32,
                    cache_identifiers=[r"blocks\.\d+\.attn\d", r"blocks\.\d+\.ffn"],
                ),
                0,
            ),
        ],
    )
    @torch.no_grad()
    def test_step_caching_hooks(self, make_transformer, make_transformer_inputs, config, skips, with_condition_cache):
        model = make_transformer(text_dim=16)
        inputs = make_transformer_inputs(model)
        first = model(**inputs).sample
        last_block_runs = []
        model.blocks[-1].norm1.register_forward_hook(lambda *_: last_block_runs.append(1))
        model.enable_cache(config)
        cache = ConditionCache() if with_condition_cache else None
        outputs = []
        for _ in range(4):
            with model.cache_context("cond"):
                outputs.append(model(**inputs, condition_cache=cache).sample)
        # With the same input at every step, each approximation is exact.
        for output in outputs:
            torch.testing.assert_close(output, first, atol=1e-4, rtol=0)
        steps = 4 - skips
        assert len(last_block_runs) == (steps + 1 if with_condition_cache else 2 * steps)

    @torch.no_grad()
    def test_compiled_blocks_are_one_graph(self, make_transformer, make_transformer_inputs):
        model = make_transformer(text_dim=16, num_layers=2, face_attention_interval=1)
        inputs = make_transformer_inputs(model)
        expected = model(**inputs).sample
        unconditional = {name: inputs[name] for name in ("hidden_states", "timestep", "encoder_hidden_states")}
        expected_unconditional = model(**unconditional).sample
        torch.compiler.reset()
        counters.clear()
        model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(model(**inputs).sample, expected, atol=1e-5, rtol=0)
        graphs = counters["stats"]["unique_graphs"]
        cache, unconditional_cache = ConditionCache(), ConditionCache()
        for _ in range(2):
            cache.start_segment()
            unconditional_cache.start_segment()
            for _ in range(2):
                torch.testing.assert_close(model(**inputs, condition_cache=cache).sample, expected, atol=1e-5, rtol=0)
                output = model(**unconditional, condition_cache=unconditional_cache).sample
                torch.testing.assert_close(output, expected_unconditional, atol=1e-5, rtol=0)
        assert cache.has_references()
        # One more graph for each guidance branch with a cache; none for filling it, none for the second segment.
        assert counters["stats"]["unique_graphs"] == graphs + 2
        torch.compiler.reset()
