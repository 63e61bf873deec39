"""
Runs a training script as one process of an FSDP2 run on CPUs: `python launch_fsdp2_on_cpu.py SCRIPT ARGUMENTS...`

`accelerate` (1.15) reads its FSDP settings, yet passes over them where processes run on CPUs, and would train with DDP.
PyTorch itself shards on CPUs, so here accelerate's state is told what it knows; all else is its own code.
"""

import runpy
import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


initialize = AcceleratorState.__init__


def initialize_sharded(self, *arguments, fsdp_plugin=None, **options) -> None:
    initialize(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        assert self.distributed_type == DistributedType.MULTI_CPU
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)


AcceleratorState.__init__ = initialize_sharded
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
