"""Masked autoencoding on one device and on eight: the same losses, and no token travels."""

import jax
import numpy as np
import pytest
from test_same_losses import collectives, fresh_state, local_shapes
from tiny_training import STEPS, TinyTraining, relative_differences

from configs.pretrain import small_mae
from cxr_jax.sharding import make_mesh, path_name

BATCH, WIDTH, DECODER_WIDTH = 16, 40, 24


def tiny_config():
    """Sizes of which no parameter has the shape of an activation: 16 rows, 5 or 17 tokens, widths 40 and 24."""
    config = small_mae.get_config()
    config.batch_size, config.total_steps = BATCH, STEPS
    config.model.update(image_size=32, patch_size=8, width=WIDTH, depth=2, num_heads=2)
    config.decoder.update(width=DECODER_WIDTH, depth=2, num_heads=2)
    config.dtypes.update(param="float64", compute="float64", reduce="float64")
    return config


def test_float64_losses_are_those_of_one_device_and_only_parameters_and_scalars_travel(phantom_dataset):
    """Beside parameters and their gradients: scalars, vectors of a width, and the second moments of features."""
    with jax.enable_x64(True):
        one = TinyTraining(tiny_config(), make_mesh(devices=jax.devices()[:1]), phantom_dataset)
        state = one.init()
        values = jax.tree.map(np.array, state)
        reference = one.run(state)
        many = TinyTraining(tiny_config(), make_mesh(fsdp=8), phantom_dataset)
        differences = relative_differences(many.run(fresh_state(many, values)), reference)
        assert max(differences[name] for name in ("loss", "visible_error", "grad_norm")) < 1e-8, differences
        assert reference[-1]["loss"] != pytest.approx(reference[0]["loss"], rel=1e-6)

        allowed = {(), (WIDTH,), (WIDTH, WIDTH)}
        for at, leaf in jax.tree_util.tree_flatten_with_path(many.abstract_state.params)[0]:
            allowed |= local_shapes(path_name(at), leaf.shape, many.mesh)
        moved = list(collectives(many.compiled_step.as_text()))
        assert moved, "the compiled step of eight devices has no collectives: the pattern no longer finds them"
        assert not [(kind, shape) for kind, shape in moved if shape not in allowed]
