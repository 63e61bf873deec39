"""One of two processes that share a transformer's work, in one way and then in another: `parallel_process.py RANK FOLDER`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers.hooks import tensor_parallel


rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
# Diffusers divides the rank by the number of accelerators, which a machine without any does not have, and shards tensors
# on those alone
torch.accelerator.device_count = lambda: 1
tensor_parallel._SUPPORTED_TP_DEVICES = (*tensor_parallel._SUPPORTED_TP_DEVICES, "cpu")

from conftest import make_inputs, make_model  # noqa: E402
from diffusers import ContextParallelConfig  # noqa: E402
from diffusers.models._modeling_parallel import ParallelConfig, TensorParallelConfig  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402

from diffusers_dreamactor.models.condition_cache import ConditionCache  # noqa: E402


for kind in ("tensor", "context"):
    model = make_model(text_dim=16, image_dim=20)
    if kind == "tensor":
        mesh = init_device_mesh("cpu", (2,))
        model.enable_parallelism(
            config=ParallelConfig(tensor_parallel_config=TensorParallelConfig(tp_degree=2, mesh=mesh))
        )
    else:
        model.set_attention_backend("native")
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))

    results = {}
    for name, arguments in (
        ("isolated", {"references": 2}),
        ("in stream", {"references": 0, "stream_references": 1}),
        ("neither", {"references": 0}),
    ):
        inputs = make_inputs(model, **arguments)
        cache = ConditionCache()
        with torch.no_grad():
            results[name] = model(**inputs).sample
            for _ in range(2):
                results[f"{name}, cached"] = model(**inputs, condition_cache=cache).sample
    tokens = inputs["hidden_states"].shape[2] * 2 * 3
    with torch.no_grad():
        inputs["timestep"] = torch.linspace(100, 900, tokens)[None]
        results["a timestep for each token"] = model(**inputs).sample
    if rank == 0:
        torch.save(results, folder / f"{kind}.pt")
dist.barrier()
dist.destroy_process_group()
