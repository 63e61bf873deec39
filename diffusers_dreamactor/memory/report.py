"""Memory plans as a table to read."""

from collections.abc import Iterable

from diffusers_dreamactor.memory.plans import GIB, MemoryPlan


CARDS = (12, 16, 24, 48, 80)


def plan_table(plans: Iterable[MemoryPlan]) -> str:
    """Each plan's weights, caches, activations and peak on the device, and what it keeps elsewhere, in GiB."""
    lines = [f"{'':<42}{'weights':>8}{'caches':>8}{'activ.':>8}{'peak':>8}{'  host':>8}{'  disk':>8}"]
    for plan in plans:
        sizes = (plan.weights, plan.caches, plan.activations, plan.peak, plan.host, plan.disk)
        lines.append(f"{plan.name:<42}" + "".join(f"{size / GIB:>8.1f}" for size in sizes))
    return "\n".join(lines)
