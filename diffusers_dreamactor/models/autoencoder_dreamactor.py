"""The video autoencoder: Wan's, with normalised latents and streams in both directions."""

from collections.abc import Callable, Iterable, Iterator

import torch
from diffusers.models import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.utils.accelerate_utils import apply_forward_hook


class DreamActorVAE(AutoencoderKLWan):
    r"""
    `AutoencoderKLWan` (same parameters, same keys, same config) that speaks normalised latents and works as a stream.

    A causal video autoencoder needs only the last two frames of each convolution's input to go on. Diffusers keeps
    those features on the model; here they live in a `feat_cache` dictionary that the caller (or the generator of a
    stream) owns, so that any number of streams and whole-video calls may interleave. The first latent frame stands
    for one frame of video, each later one for `scale_factor_temporal` (4) more: `F = 4 (T - 1) + 1`.

    Memory and time grow linearly with the length: the pieces are concatenated once. Small frames go through the
    network several latent frames at a time, which is 2.6 times as fast at 128 pixels on a CPU. `enable_tiling` and
    `enable_slicing` apply to every method, streams included; `enable_gradient_checkpointing` recomputes the encoder
    or decoder for one such step at a time.

    Attributes:
        step_area (`int`, defaults to `480 * 832`):
            Pixels of a frame times latent frames that go through the network in one step (one latent frame at least).
            The default spends no more memory on small frames than one latent frame of the usual size takes; 0 takes
            the least memory.
    """

    _supports_gradient_checkpointing = True
    step_area = 480 * 832

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Raw latents `(B, C, T, h, w)` of `encode` -> `(latents - latents_mean) / latents_std` of the config."""
        mean, std = self._latent_statistics(latents)
        return (latents - mean) / std

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize_latents`: what `decode` takes."""
        mean, std = self._latent_statistics(latents)
        return latents * std + mean

    def _latent_statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channels = self.config.z_dim
        if latents.ndim != 5 or latents.shape[1] != channels:
            raise ValueError(
                f"`latents` has shape {tuple(latents.shape)}, but has to be (batch, {channels}, T, h, w)."
            )
        if len(self.config.latents_mean) != channels or len(self.config.latents_std) != channels:
            raise ValueError(
                f"`latents_mean` and `latents_std` of the VAE's config have {len(self.config.latents_mean)} and "
                f"{len(self.config.latents_std)} values, but both need one for each of the {channels} latent channels."
            )
        statistics = torch.tensor(
            [self.config.latents_mean, self.config.latents_std], device=latents.device, dtype=latents.dtype
        )
        mean, std = statistics.view(2, 1, -1, 1, 1, 1)
        return mean, std

    def encode_video(
        self,
        video: torch.Tensor,
        sample: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        feat_cache: dict | None = None,
    ) -> torch.Tensor:
        """
        Encode a video into normalised latents.

        Args:
            video (`torch.Tensor` of shape `(B, 3, F, H, W)`):
                Frames in [-1, 1]; `F = 4 (T - 1) + 1`, `H` and `W` multiples of the spatial compression ratio.
            sample (`bool`, defaults to `False`):
                Whether to sample from the posterior instead of taking its mode.
            generator (`torch.Generator` or a list with one for each video, *optional*):
                Makes the sample deterministic.
            feat_cache (`dict`, *optional*):
                State of a stream, filled in place: pass the same dictionary, empty at first, with every piece. The
                first piece has `4 (T - 1) + 1` frames, later ones have `4 T`.

        Returns:
            `torch.Tensor` of shape `(B, z_dim, T, H / 8, W / 8)`, in the model's dtype.

        Raises:
            `ValueError`: if the number of frames or the size does not fit.
        """
        ratio = self.spatial_compression_ratio
        if video.ndim != 5 or video.shape[3] % ratio or video.shape[4] % ratio:
            raise ValueError(
                f"`video` has shape {tuple(video.shape)}, but has to be (batch, channels, frames, height, width) with "
                f"height and width multiples of {ratio}."
            )
        stride, started = self.config.scale_factor_temporal, bool(feat_cache)
        if video.shape[2] == 0 or (video.shape[2] - (0 if started else 1)) % stride:
            wanted = (
                f"a multiple of {stride} in a later piece of a stream" if started else f"1 plus a multiple of {stride}"
            )
            raise ValueError(f"`video` has {video.shape[2]} frames, but the number has to be {wanted}.")

        moments = self._run_slices(
            self._encode_moments, video.to(self.dtype), {} if feat_cache is None else feat_cache
        )
        posterior = DiagonalGaussianDistribution(moments)
        return self.normalize_latents(posterior.sample(generator) if sample else posterior.mode())

    def decode_video(self, latents: torch.Tensor, clamp: bool = True, feat_cache: dict | None = None) -> torch.Tensor:
        """
        Decode normalised latents into a video.

        Args:
            latents (`torch.Tensor` of shape `(B, z_dim, T, h, w)`):
                Normalised latents.
            clamp (`bool`, defaults to `True`):
                Whether to clamp the frames to [-1, 1]. Train with `False`: clamping kills gradients.
            feat_cache (`dict`, *optional*):
                State of a stream, filled in place: pass the same dictionary, empty at first, with every piece.

        Returns:
            `torch.Tensor` of shape `(B, 3, F, 8 h, 8 w)`, in the model's dtype: `F = 4 (T - 1) + 1` frames, or `4 T`
            for a later piece of a stream.
        """
        latents = self.denormalize_latents(latents.to(self.dtype))
        video = self._run_slices(self._decode_frames, latents, {} if feat_cache is None else feat_cache)
        return video.clamp(-1.0, 1.0) if clamp else video

    def encode_stream(self, video: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """
        Encode a video that arrives in pieces, without gradients, in memory that does not grow with its length.

        Args:
            video (iterable of `torch.Tensor` of shape `(B, 3, F, H, W)`):
                Pieces of any length, frames in [-1, 1]; `4 (T - 1) + 1` frames in all.

        Yields:
            `torch.Tensor` of shape `(B, z_dim, T, h, w)`: the normalised latent frames (the posterior's mode) of one
            step at a time, equal to those of `encode_video` on the whole video.

        Raises:
            `ValueError`: at the end, if frames are left over that do not fill a latent frame.
        """
        stride = self.config.scale_factor_temporal
        feat_cache, pending = {}, None
        for piece in video:
            if pending is not None:
                piece = torch.cat([pending, piece], dim=2)
            started = bool(feat_cache)
            remainder = piece.shape[2] % stride if started else (piece.shape[2] - 1) % stride
            # A copy, so that the frames already encoded can be freed.
            pending = piece[:, :, piece.shape[2] - remainder :].clone()
            for step in self._split_steps(piece[:, :, : piece.shape[2] - remainder], started, stride):
                with torch.no_grad():
                    latents = self.encode_video(step, feat_cache=feat_cache)
                yield latents
        if pending is not None and pending.shape[2]:
            raise ValueError(
                f"`video` ends with {pending.shape[2]} frames too many: the number of frames in all pieces has to be "
                f"1 plus a multiple of {self.config.scale_factor_temporal}."
            )

    def decode_stream(self, latents: Iterable[torch.Tensor], clamp: bool = True) -> Iterator[torch.Tensor]:
        """
        Decode latents that arrive in pieces, without gradients, in memory that does not grow with the length.

        Args:
            latents (iterable of `torch.Tensor` of shape `(B, z_dim, T, h, w)`):
                Pieces of normalised latents of any length.
            clamp (`bool`, defaults to `True`):
                Whether to clamp the frames to [-1, 1].

        Yields:
            `torch.Tensor` of shape `(B, 3, F, H, W)`: the frames of one step at a time (1 for the first latent frame,
            4 for a later one), equal to those of `decode_video` on the whole latents; no seam between pieces.
        """
        feat_cache = {}
        for piece in latents:
            for step in self._split_steps(piece, bool(feat_cache)):
                with torch.no_grad():
                    frames = self.decode_video(step, clamp=clamp, feat_cache=feat_cache)
                yield frames

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        # As in AutoencoderKLWan, frames that do not fill a latent frame are left out.
        stride = self.config.scale_factor_temporal
        return self._encode_moments(x[:, :, : 1 + (x.shape[2] - 1) // stride * stride], {})

    def _decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        sample = self._decode_frames(z, {}).clamp(-1.0, 1.0)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _split_steps(
        self, hidden_states: torch.Tensor, started: bool, frames_per_latent: int | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Split frames (or latents: `frames_per_latent=None`) into steps; the first of a stream stands alone."""
        height, width = hidden_states.shape[-2:]
        if frames_per_latent is None:
            height, width = height * self.spatial_compression_ratio, width * self.spatial_compression_ratio
        step = max(1, self.step_area // (height * width)) * (frames_per_latent or 1)
        first = [] if started else [1]
        full, rest = divmod(hidden_states.shape[2] - len(first), step)
        return hidden_states.split(first + [step] * full + [rest] * (rest > 0), dim=2)

    def _run_slices(self, function: Callable, hidden_states: torch.Tensor, feat_cache: dict) -> torch.Tensor:
        if not self.use_slicing:
            return function(hidden_states, feat_cache)
        slices = [
            function(hidden_slice, feat_cache.setdefault(index, {}))
            for index, hidden_slice in enumerate(hidden_states.split(1))
        ]
        return torch.cat(slices)

    # Offloading moves the weights at each piece of a stream: between two pieces, other models run.
    @apply_forward_hook
    def _encode_moments(self, video: torch.Tensor, feat_cache: dict) -> torch.Tensor:
        """Frames `(B, 3, F, H, W)` -> posterior's moments `(B, 2 z_dim, T, h, w)`; `feat_cache` is filled in place."""
        height, width = video.shape[-2:]
        patch_size = self.config.patch_size or 1
        if self.use_tiling and (width > self.tile_sample_min_width or height > self.tile_sample_min_height):
            # In pixels after the patches, as in AutoencoderKLWan.
            tile_size = (self.tile_sample_min_height, self.tile_sample_min_width)
            tile_stride = (self.tile_sample_stride_height, self.tile_sample_stride_width)
        else:
            tile_size = tile_stride = (height // patch_size, width // patch_size)

        scale = patch_size / self.spatial_compression_ratio
        moments = []
        for step in self._split_steps(video, bool(feat_cache), self.config.scale_factor_temporal):
            step = patchify(step, patch_size)
            encoded = self._run_tiles(self.encoder, step, feat_cache, tile_size, tile_stride, scale)
            moments.append(self.quant_conv(encoded))
        return torch.cat(moments, dim=2)

    @apply_forward_hook
    def _decode_frames(self, latents: torch.Tensor, feat_cache: dict) -> torch.Tensor:
        """Raw latents `(B, z_dim, T, h, w)` -> frames, not clamped; `feat_cache` is filled in place."""
        height, width = latents.shape[-2:]
        ratio = self.spatial_compression_ratio
        tile_size = (self.tile_sample_min_height // ratio, self.tile_sample_min_width // ratio)
        if self.use_tiling and (height > tile_size[0] or width > tile_size[1]):
            tile_stride = (self.tile_sample_stride_height // ratio, self.tile_sample_stride_width // ratio)
        else:
            tile_size = tile_stride = (height, width)

        patch_size = self.config.patch_size or 1
        frames = []
        for step in self._split_steps(self.post_quant_conv(latents), bool(feat_cache)):
            kwargs = {"first_chunk": not feat_cache}
            scale = ratio // patch_size
            decoded = self._run_tiles(self.decoder, step, feat_cache, tile_size, tile_stride, scale, **kwargs)
            frames.append(unpatchify(decoded, patch_size))
        return torch.cat(frames, dim=2)

    def _run_tiles(
        self,
        network: torch.nn.Module,
        hidden_states: torch.Tensor,
        feat_cache: dict,
        tile_size: tuple[int, int],
        tile_stride: tuple[int, int],
        scale: float,
        **kwargs,
    ) -> torch.Tensor:
        """
        Run the encoder or decoder over overlapping tiles of one chunk and blend them, as `AutoencoderKLWan` does after
        running all chunks of a tile. Each tile has its own features. `scale`: output pixels for an input pixel.
        """
        height, width = hidden_states.shape[-2:]
        stride_height, stride_width = (int(stride * scale) for stride in tile_stride)
        blend_height, blend_width = (
            int(size * scale) - int(stride * scale) for size, stride in zip(tile_size, tile_stride)
        )

        result_rows, above = [], None
        for top in range(0, height, tile_stride[0]):
            row = []
            for left in range(0, width, tile_stride[1]):
                tile = hidden_states[..., top : top + tile_size[0], left : left + tile_size[1]]
                tile = self._run_network(network, tile, feat_cache, (top, left), kwargs)
                if above is not None:
                    tile = self.blend_v(above[len(row)], tile, blend_height)
                if row:
                    tile = self.blend_h(row[-1], tile, blend_width)
                row.append(tile)
            result_rows.append(torch.cat([tile[..., :stride_height, :stride_width] for tile in row], dim=-1))
            above = row
        return torch.cat(result_rows, dim=-2)[..., : int(height * scale), : int(width * scale)]

    @staticmethod
    def _run_network(
        network: torch.nn.Module, hidden_states: torch.Tensor, feat_cache: dict, key: tuple[int, int], kwargs: dict
    ) -> torch.Tensor:
        """Run the encoder or decoder on one chunk of one tile, reading and replacing the tile's features."""

        def run(hidden_states, features):
            # The network fills the list in place; on a copy, recomputing in the backward pass sees the old features.
            features = list(features)
            return network(hidden_states, feat_cache=features, feat_idx=[0], **kwargs), features

        # One entry for each causal convolution is enough; None: nothing came before.
        features = feat_cache.get(key)
        if features is None:
            features = [None] * sum(isinstance(module, WanCausalConv3d) for module in network.modules())
        if torch.is_grad_enabled() and network.gradient_checkpointing:
            output, feat_cache[key] = network._gradient_checkpointing_func(run, hidden_states, features)
        else:
            output, feat_cache[key] = run(hidden_states, features)
        return output
