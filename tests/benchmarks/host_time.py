"""How long the host is held up by one training step, at ViT-L's depth with tiny widths.

    python -m tests.benchmarks.host_time [--steps=200]

Printed: median and 90th percentile, in ms, of the time until a jitted call returns, with nothing else under way: of a
program that takes and donates the step's state and computes next to nothing, which is what the host pays for any step;
and of the step itself, of which a CPU, unlike an accelerator, computes a part on the calling thread. The state has as
many arrays as ViT-L's, since layers are stacked.
"""

import argparse
import time

import jax
import numpy as np

from configs import smoke
from cxr_jax.experiments import build
from cxr_jax.planning.step import batch_shapes
from cxr_jax.sharding import make_layout, make_mesh
from cxr_jax.state import init_state, make_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    config = smoke.get_config()
    config.model.update(image_size=32, depth=24, width=8, num_heads=2)
    config.crops.update(global_size=32, local_size=16, num_local=1)
    for head in config.heads.values():
        head.update(hidden=8, bottleneck=8, num_prototypes=16)
    experiment, mesh = build(config), make_mesh(devices=jax.devices()[:1])
    state = init_state(experiment.objective, experiment.tx, mesh, jax.random.key(0))
    layout = make_layout(mesh, "float32")
    step = make_step(experiment.objective, experiment.tx, mesh, layout, experiment.schedules)
    shapes = batch_shapes(mesh, config.batch_size, (32, 32), 0)
    batch = {name: jax.device_put(np.full(leaf.shape, 32, leaf.dtype)) for name, leaf in shapes.items()}
    key, leaves = jax.random.key(1), len(jax.tree.leaves(state))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    kept = jax.jit(
        lambda state: jax.tree.map(lambda leaf: leaf | leaf if leaf.dtype == bool else leaf + 0, state),
        in_shardings=(shardings,),
        out_shardings=shardings,
        donate_argnums=0,
    )
    programs = {"state in and out": kept, "training step": lambda state: step(state, batch, key)[0]}
    for name, program in programs.items():
        held = []
        for _ in range(steps + 5):
            jax.block_until_ready(state)
            started = time.perf_counter()
            state = program(state)
            held.append(1e3 * (time.perf_counter() - started))
        median, late = np.percentile(held[5:], [50, 90])
        print(f"{name}, {leaves} arrays: the call returns after {median:.2f} ms (90 % within {late:.2f} ms)")


if __name__ == "__main__":
    main()
