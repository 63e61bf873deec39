"""How much memory code takes, without taking it: its tensors on the meta device, counted while they live."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.models.attention_dispatch import attention_backend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE


class MemoryTrace(TorchDispatchMode):
    """
    Counts the bytes of the tensors that are made while it is active and are still alive, and keeps the most there were.

    Args:
        models (`dict[str, torch.nn.Module]`): The models that run, by name. Their own tensors are not counted.

    Attributes:
        live (`int`): Bytes of the tensors that are alive.
        peak (`int`): The most that `live` was since `start_peak`.
        peaks (`dict[str, int]`): The same while each model was the last one whose weights were used, which is as long as
            offloading by models keeps it on the device.
    """

    def __init__(self, models: Mapping[str, torch.nn.Module]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.peaks = dict.fromkeys(models, 0)
        self._storages: dict[int, weakref.ref] = {}
        self._owners = {}
        for name, model in models.items():
            for tensor in (*model.parameters(), *model.buffers()):
                self._owners[tensor.untyped_storage()._cdata] = name
        self._current: str | None = None

    def start_peak(self) -> None:
        """Forgets the peak so far."""
        self.peak = self.live

    def add(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage, unless it is counted already or a model's own."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages or key in self._owners:
            return

        def free(reference: weakref.ref) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, free)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for value in tree_iter((args, kwargs)):
            if isinstance(value, torch.Tensor):
                self._current = self._owners.get(value.untyped_storage()._cdata, self._current)
        result = function(*args, **kwargs)
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor) and value.device.type == "meta":
                self.add(value)
        if self._current is not None:
            self.peaks[self._current] = max(self.peaks[self._current], self.live)
        return result


class _FusedAttention(TorchFunctionMode):
    """Attention as fused kernels do it, which never hold the matrix of all queries and keys."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            query, _, value = args[:3] if len(args) >= 3 else (kwargs[name] for name in ("query", "key", "value"))
            return torch.empty_like(query[..., :1].expand(*query.shape[:-1], value.shape[-1]))
        return function(*args, **(kwargs or {}))


@contextmanager
def _repeated_vae_calls(trace: MemoryTrace) -> Iterator[None]:
    """A call of the VAE's networks with shapes that it had before takes what it took then, and is not run again, and tiles
    are not blended, line by line: a tiled video has hundreds of the ones and 100,000 of the others."""
    run, known = DreamActorVAE.__dict__["_run_network"], {}

    def kinds(features: list) -> tuple:
        return tuple((f.shape, f.dtype) if torch.is_tensor(f) else f for f in features)

    def run_once(network, hidden_states, feat_cache, key, kwargs):
        before = kinds(feat_cache.get(key) or [])
        call = (id(network), hidden_states.shape, hidden_states.dtype, before, tuple(kwargs.items()))
        if call not in known:
            peak, live = trace.peak, trace.live
            trace.start_peak()
            output = run.__func__(network, hidden_states, feat_cache, key, kwargs)
            known[call] = (trace.peak - live, output.shape, kinds(feat_cache[key]))
            trace.peak = max(peak, trace.peak)
            return output
        taken, shape, after = known[call]
        # operations on the network's weights, so that the trace knows who works
        weight = next(network.parameters())
        weight.new_empty(taken, dtype=torch.uint8)
        if after != before:
            feat_cache[key] = [weight.new_empty(f[0], dtype=f[1]) if isinstance(f, tuple) else f for f in after]
        return weight.new_empty(shape, dtype=hidden_states.dtype)

    DreamActorVAE._run_network = staticmethod(run_once)
    DreamActorVAE.blend_v = DreamActorVAE.blend_h = lambda vae, before, tile, extent: tile
    try:
        yield
    finally:
        DreamActorVAE._run_network = run
        del DreamActorVAE.blend_v, DreamActorVAE.blend_h


@contextmanager
def trace_memory(models: Mapping[str, torch.nn.Module]) -> Iterator[MemoryTrace]:
    """
    Counts what runs inside, without gradients, on models of the meta device.

    Args:
        models (`dict[str, torch.nn.Module]`): The models that run, by name.

    Yields:
        [`MemoryTrace`]
    """
    trace = MemoryTrace(models)
    with torch.no_grad(), attention_backend("native"), _FusedAttention(), _repeated_vae_calls(trace), trace:
        yield trace
