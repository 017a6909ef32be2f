"""Overrides of configs/smoke.py under which a training as a real process takes seconds; and XLA's flags for it.

Tests compile much and compute little, so the compiler does not optimise, and takes the quicker of two generators: that
of fused loops through MLIR is half of all compiling. The older one was removed after jaxlib 0.10, where an unknown flag
is fatal.
"""

from importlib.metadata import version

QUICK_COMPILE = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):
    QUICK_COMPILE.append("--xla_cpu_use_fusion_emitters=false")

TINY_RUN = {
    "batch_size": 8,
    "model.image_size": 32,
    "model.width": 32,
    "crops.global_size": 32,
    "crops.local_size": 16,
    "crops.num_local": 1,
    "objective.group_size": 2,
    "heads.dino_head.num_prototypes": 64,
    "heads.ibot_head.num_prototypes": 64,
    "log.every_steps": 1,
    "log.tensorboard": False,
}
