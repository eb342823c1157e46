"""What a run needs, before anybody spends money on it: memory, disk, arithmetic and time."""

from gated_plugin.plan.run_plan import RunPlan, plan, plan_all

__all__ = ["RunPlan", "plan", "plan_all"]
