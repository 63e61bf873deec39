"""
A device of PyTorch's private-use slot for tests: its numbers are computed on the CPU, and what raises on CUDA (tensors of
two devices in one operation) or on MPS (float64) raises on it, too.

    with torch.no_grad(), PretendDevice():
        pipe.to(DEVICE)
        pipe(...)
"""

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this version of PyTorch has no devices that are written in Python", allow_module_level=True)
backend_registration._setup_privateuseone_for_python_backend()
DEVICE = torch.device("privateuseone", 0)
_aten = torch.ops.aten
# On CUDA these take tensors of both devices, too.
_TAKES_BOTH = {
    _aten.copy_.default,
    _aten._to_copy.default,
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}


class DeviceTensor(torch.Tensor):
    """A tensor on `DEVICE`, around the one on the CPU that holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor, requires_grad: bool = False):
        held = held.held if isinstance(held, DeviceTensor) else held
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), dtype=held.dtype, device=DEVICE, requires_grad=False
        )
        tensor.held = held
        return tensor

    def __init__(self, held: torch.Tensor, requires_grad: bool = False):
        pass

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})

    def __repr__(self):
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo):
        return DeviceTensor(self.held.clone())


class PretendDevice(TorchDispatchMode):
    """
    Makes `DEVICE` usable inside the block.

    Args:
        float64 (`bool`): whether the device has that type.
    """

    has_float64 = True

    def __init__(self, float64: bool = True):
        super().__init__()
        self.float64 = float64

    def __enter__(self):
        PretendDevice.has_float64 = self.float64
        # this one does not reach the dispatcher with its device
        make = self._make = torch.tensor

        def tensor(*args, device=None, **kwargs):
            made = make(*args, **kwargs)
            return made if device is None else made.to(device)

        torch.tensor = tensor
        return super().__enter__()

    def __exit__(self, *exception):
        torch.tensor = self._make
        PretendDevice.has_float64 = True
        return super().__exit__(*exception)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})


def is_pretend(device) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _compute(operation, args, kwargs):
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
    # a CPU tensor of one number may take part anywhere
    if here and operation not in _TAKES_BOTH and any(tensor.ndim > 0 for tensor in elsewhere):
        raise RuntimeError(f"{operation} got tensors of both devices: {[tuple(tensor.shape) for tensor in tensors]}.")
    if operation is _aten.index.Tensor and here and not isinstance(args[0], DeviceTensor):
        raise RuntimeError("A tensor on the CPU was indexed by one on the device.")
    target = kwargs.get("device")
    on_device = bool(here) if target is None else is_pretend(target)
    if operation is _aten.copy_.default:
        on_device = isinstance(args[0], DeviceTensor)
    if target is not None:
        kwargs = {**kwargs, "device": "cpu" if on_device else target}
    held_args, held_kwargs = tree_map(
        lambda leaf: leaf.held if isinstance(leaf, DeviceTensor) else leaf, (args, kwargs)
    )
    result = operation(*held_args, **held_kwargs)
    name = operation._schema.name
    if name.endswith("_") and not name.endswith("__"):
        return args[0]
    return tree_map(_put, result) if on_device else result


def _put(leaf):
    if not isinstance(leaf, torch.Tensor) or isinstance(leaf, DeviceTensor):
        return leaf
    if leaf.dtype == torch.float64 and not PretendDevice.has_float64:
        raise TypeError("This device has no float64.")
    return DeviceTensor(leaf)


def _moved(tensor: torch.Tensor, device) -> torch.Tensor:
    moved = tensor.detach().to(device)
    return torch.nn.Parameter(moved, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else moved


def let_offloading_move(monkeypatch) -> None:
    """Diffusers' group offloading and accelerate's hooks assign to `.data`, which cannot change the kind of a tensor: here
    they swap tensors instead."""
    from accelerate import hooks
    from diffusers.hooks.group_offloading import ModuleGroup

    def move(group, device):
        members = [*group.parameters, *group.buffers]
        for module in group.modules:
            members += [*module.parameters(), *module.buffers()]
        for tensor in members:
            if isinstance(tensor, DeviceTensor) != is_pretend(device):
                moved = tensor.detach().to(device)
                if isinstance(tensor, torch.nn.Parameter) or getattr(tensor, "_is_param", False):
                    moved = torch.nn.Parameter(moved, requires_grad=False)
                torch.utils.swap_tensors(tensor, moved)

    def set_tensor(module, name, device, value=None, dtype=None, **kwargs):
        owner, _, leaf = name.rpartition(".")
        module = module.get_submodule(owner)
        store = module._parameters if leaf in module._parameters else module._buffers
        value = store[leaf] if value is None else value
        if torch.device(device).type == "meta":
            value = torch.empty(value.shape, dtype=value.dtype, device="meta")
        value = value.detach().to(device)
        store[leaf] = torch.nn.Parameter(value, requires_grad=False) if store is module._parameters else value

    monkeypatch.setattr(ModuleGroup, "_onload_from_memory", lambda self, *a, **k: move(self, self.onload_device))
    monkeypatch.setattr(ModuleGroup, "_offload_to_memory", lambda self, *a, **k: move(self, self.offload_device))
    monkeypatch.setattr(hooks, "set_module_tensor_to_device", set_tensor)
