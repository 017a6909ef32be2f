"""Segmentation heads against PyTorch: every piece, and UPerNet as a whole with its gradients, same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxr_jax.heads import maps
from cxr_jax.heads.segmentation import LinearSegmenter, UPerNet
from cxr_jax.models.layers import Dtypes
from cxr_jax.models.vit import Features

torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")
functional = torch.nn.functional

BLOCKS, ROWS, GRID, WIDTH, CHANNELS, CLASSES, PATCH = 4, 2, 5, 12, 8, 2, 4
SIZES = {"width": WIDTH, "num_classes": CLASSES, "patch_size": PATCH, "blocks": BLOCKS}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def first(x):
    """`[b, h, w, c]` as PyTorch has it."""
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def last(x):
    return x.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", [(5, 3), (9, 14), (1, 1), (20, 7)])
def test_bilinear_resizing(size):
    x = random(2, 5, 7, 3)
    theirs = functional.interpolate(first(x), size=size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(maps.resize(jnp.asarray(x), *size), last(theirs), atol=1e-5)


@pytest.mark.parametrize("side", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(7, 7), (4, 5), (2, 3), (1, 1)])
def test_pyramid_pooling_cells(side, shape):
    x = random(2, *shape, 3)
    theirs = functional.adaptive_avg_pool2d(first(x), side)
    np.testing.assert_allclose(maps.pool(jnp.asarray(x), side), last(theirs), atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 8), (7, 5), (1, 1)])
def test_halving_keeps_odd_borders(shape):
    x = random(2, *shape, 3)
    theirs = functional.max_pool2d(first(x), 2, ceil_mode=True)
    np.testing.assert_array_equal(maps.halve(jnp.asarray(x)), last(theirs))


def test_convolution():
    x, kernel, bias = random(2, 6, 5, 3), random(3, 3, 3, 4, seed=1), random(4, seed=2)
    theirs = functional.conv2d(first(x), torch.tensor(kernel).permute(3, 2, 0, 1), torch.tensor(bias), padding=1)
    ours = maps.convolve(*map(jnp.asarray, (x, kernel, bias)), Dtypes())
    np.testing.assert_allclose(ours, last(theirs), atol=1e-5)


def test_doubling_is_a_transposed_convolution():
    x, double = random(2, 3, 4, 6), maps.Doubling(6, dtypes=Dtypes(), rngs=nnx.Rngs(0))
    kernel = torch.tensor(np.asarray(double.map.kernel[...])).permute(0, 3, 1, 2)
    theirs = functional.conv_transpose2d(first(x), kernel, stride=2)
    np.testing.assert_allclose(double(jnp.asarray(x)), last(theirs), atol=1e-5)


def filled(construct):
    graphdef, state = nnx.split(nnx.eval_shape(construct))
    rng = np.random.default_rng(5)
    draw = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)
    return graphdef, jax.tree.map(draw, nnx.to_pure_dict(state))


def as_torch(tree):
    return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), tree)


class Reference:
    """UPerNet on `[b, c, h, w]` from the published equations, with our layers' names for its weights."""

    def __init__(self, params):
        self.params = params

    def norm(self, x, p):
        x = functional.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], p["scale"], p["bias"], eps=1e-6)
        return x.permute(0, 3, 1, 2)

    def block(self, x, p):
        kernel = p["conv"]["kernel"]
        if kernel.ndim == 2:
            y = functional.conv2d(x, kernel.T[:, :, None, None], p["conv"]["bias"])
        else:
            y = functional.conv2d(x, kernel.permute(3, 2, 0, 1), p["conv"]["bias"], padding=1)
        return torch.relu(self.norm(y, p["norm"]))

    def double(self, x, p):
        y = functional.conv_transpose2d(x, p["map"]["kernel"].permute(0, 3, 1, 2), stride=2)
        # A bias of its own for each of the four pixels.
        bias = p["map"]["bias"].permute(2, 0, 1)
        return y + bias.repeat(1, x.shape[2], x.shape[3])[None]

    def up(self, x, like):
        return functional.interpolate(x, size=like, mode="bilinear", align_corners=False)

    def __call__(self, patches):
        p = self.params
        grids = [x.transpose(1, 2).reshape(ROWS, WIDTH, GRID, GRID) for x in patches]
        levels = [self.block(x, p["lateral"][name]) for x, name in zip(grids, ("x4", "x2", "x1", "x05"), strict=True)]
        finest = functional.gelu(self.norm(self.double(levels[0], p["double"]["a"]), p["double_norm"]))
        levels[0] = self.double(finest, p["double"]["b"])
        levels[1] = self.double(levels[1], p["double"]["c"])
        levels[3] = functional.max_pool2d(levels[3], 2, ceil_mode=True)
        top = levels[3]
        cells = [
            self.up(self.block(functional.adaptive_avg_pool2d(top, s), p["pooled"][f"side{s}"]), top.shape[2:])
            for s in (1, 2, 3, 6)
        ]
        path = self.block(torch.cat([top, *cells], 1), p["bottleneck"])
        out = [path]
        for name, level in (("x1", levels[2]), ("x2", levels[1]), ("x4", levels[0])):
            path = level + self.up(path, level.shape[2:])
            out.insert(0, self.block(path, p["smooth"][name]))
        fused = self.block(torch.cat([self.up(x, out[0].shape[2:]) for x in out], 1), p["fuse"])
        logits = functional.conv2d(fused, p["classifier"]["kernel"].T[:, :, None, None], p["classifier"]["bias"])
        return self.up(logits, (GRID * PATCH, GRID * PATCH))


def test_upernet_and_its_gradients():
    graphdef, params = filled(lambda: UPerNet(**SIZES, channels=CHANNELS, rngs=nnx.Rngs(0)))
    patches = random(BLOCKS, ROWS, GRID**2, WIDTH, seed=3)
    pull = random(ROWS, CLASSES, GRID * PATCH, GRID * PATCH, seed=4)

    @jax.jit
    def ours(params):
        def loss(params):
            empty = jnp.zeros((BLOCKS, ROWS, WIDTH)), jnp.zeros((BLOCKS, ROWS, 0, WIDTH))
            logits = nnx.merge(graphdef, params)(Features(*empty, jnp.asarray(patches)))
            return (logits * pull).sum(), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, logits), gradient = ours(params)
    theirs = as_torch(params)
    reference = Reference(theirs)(torch.tensor(patches))
    (reference * torch.tensor(pull)).sum().backward()
    assert np.abs(reference.detach().numpy()).max() > 0.1
    np.testing.assert_allclose(logits, reference.detach().numpy(), atol=1e-4, rtol=1e-4)
    for (path, mine), leaf in zip(jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(theirs), strict=True):
        scale = max(float(leaf.grad.abs().max()), 1.0)
        np.testing.assert_allclose(mine / scale, leaf.grad.numpy() / scale, atol=1e-4, err_msg=str(path))


def test_the_linear_head():
    graphdef, params = filled(lambda: LinearSegmenter(**SIZES, rngs=nnx.Rngs(0)))
    patches = random(BLOCKS + 1, ROWS, GRID**2, WIDTH, seed=3)
    empty = jnp.zeros((BLOCKS + 1, ROWS, WIDTH)), jnp.zeros((BLOCKS + 1, ROWS, 0, WIDTH))
    logits = jax.jit(lambda p: nnx.merge(graphdef, p)(Features(*empty, jnp.asarray(patches))))(params)
    x = np.concatenate(list(patches[1:]), axis=-1) @ np.asarray(params["classifier"]["kernel"])
    grid = torch.tensor(x + np.asarray(params["classifier"]["bias"])).transpose(1, 2).reshape(ROWS, CLASSES, GRID, GRID)
    theirs = functional.interpolate(grid, size=(GRID * PATCH,) * 2, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(logits, theirs.numpy(), atol=1e-5)
