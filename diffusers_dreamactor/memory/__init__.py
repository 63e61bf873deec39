"""Memory: how much a pipeline takes, estimated from its configs, and the plans that fit it into what there is."""

from diffusers_dreamactor.memory.plans import MemoryPlan, list_memory_plans, plan_memory


__all__ = ["MemoryPlan", "list_memory_plans", "plan_memory"]
