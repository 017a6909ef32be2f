"""How long the host is held up by one training step, at ViT-L's depth with tiny widths.

    PYTHONPATH=. python tests/benchmarks/host_time.py [--steps=200]

Printed: median and 90th percentile, in ms, of the time until the jitted step's call returns, with nothing else under
way. The state has as many arrays as ViT-L's, since layers are stacked; what a device computes meanwhile does not count.
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
    key, held = jax.random.key(1), []
    for _ in range(steps + 5):
        jax.block_until_ready(state)
        started = time.perf_counter()
        state, _, _ = step(state, batch, key)
        held.append(1e3 * (time.perf_counter() - started))
    held, leaves = held[5:], len(jax.tree.leaves(state))
    median, late = np.percentile(held, [50, 90])
    print(f"{leaves} arrays of state: the call returns after {median:.2f} ms (90 % within {late:.2f} ms)")


if __name__ == "__main__":
    main()
