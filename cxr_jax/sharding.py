"""Where every array lives: the mesh, the rule table for parameters, the batch sharding, and the model's layout.

In: a tree of shapes with paths. Out: `NamedSharding`s. This file alone knows mesh axes.

Axes are `("replica", "fsdp", "tensor")`. The batch is split over replica and fsdp; parameters, optimiser state and
teacher over fsdp (ZeRO-3) and, by rule, over tensor. Rules go by path, never by the number of dimensions.
"""

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from cxr_jax.models.layers import Layout

AXES = ("replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")

# (path pattern, for each mesh axis the dimensions it may split, best first). Dimensions count from the first one that
# is not the layer stack, or from the end. The first dimension that the axis divides and that is still free is taken; a
# parameter that no pattern matches is replicated.
RULES = (
    (r"attn/qkv/kernel$", {"tensor": (-2,), "fsdp": (0, -1)}),
    (r"attn/qkv/bias$", {"tensor": (-2,)}),
    (r"attn/proj/kernel$", {"tensor": (-3,), "fsdp": (-1, -2)}),
    (r"mlp/w_in/kernel$", {"tensor": (-1,), "fsdp": (0, -1)}),
    (r"mlp/w_in/bias$", {"tensor": (-1,)}),
    (r"mlp/w_out/kernel$", {"tensor": (-2,), "fsdp": (-1, -2)}),
    (r"(hidden1|hidden2|bottleneck)/kernel$", {"fsdp": (0, 1)}),
    (r"prototypes/v$", {"tensor": (-1,), "fsdp": (-1, -2)}),
    (r"prototypes/g$", {"tensor": (-1,)}),
)
STACK = re.compile(r"(^|/)blocks/")


def mesh_shape(count: int, *, replica: int = 1, fsdp: int = -1, tensor: int = 1) -> tuple[int, int, int]:
    """`count` devices as `replica x fsdp x tensor`; one of the three may be -1, "whatever is left".

    Raises ValueError when the shape does not cover the devices.
    """
    shape = [replica, fsdp, tensor]
    if shape.count(-1) == 1:
        known = -int(np.prod(shape))
        shape[shape.index(-1)] = count // known if known else 0
    if int(np.prod(shape)) != count or min(shape) < 1:
        legal = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise ValueError(
            f"mesh replica={replica} fsdp={fsdp} tensor={tensor} does not cover {count} devices; "
            f"their product must be {count}, so each is one of {legal}; one of them may be -1, whatever is left"
        )
    return shape[0], shape[1], shape[2]


def make_mesh(*, devices=None, keep_order: bool = True, **axes: int) -> Mesh:
    """A mesh of the `replica`, `fsdp` and `tensor` of `mesh_shape`.

    `devices` (default: all there are) are arranged as their network is best used, see `arrange`; given ones stay in
    their order unless `keep_order` is False. Raises ValueError when the shape does not cover the devices, or when
    parameters would be split across slices.
    """
    fixed = devices is not None and keep_order
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(len(devices), **axes)
    # Auto: under the newer default, Explicit, a batch and weights split over one axis are a ShardingTypeError.
    types = (AxisType.Auto,) * len(AXES)
    return Mesh(np.asarray(devices).reshape(shape) if fixed else arrange(devices, shape), AXES, axis_types=types)


def arrange(devices: Sequence, shape: Sequence[int]) -> np.ndarray:
    """Devices as `[replica, fsdp, tensor]` such that the last axes are the closest neighbours.

    Several slices are joined along `replica` alone: parameters are split and gathered within a slice, and gradients
    summed across slices once they are scattered.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if shape[0] % slices:
            raise ValueError(
                f"mesh replica={shape[0]} must be a multiple of {slices}, the number of slices: parameters are split "
                "within a slice and copied across"
            )
        within = (shape[0] // slices, *shape[1:])
        return mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), list(devices), allow_split_physical_axes=True
        )
    try:
        return mesh_utils.create_device_mesh(shape, list(devices))
    except NotImplementedError:  # the shape's axes are no products of the network's
        return mesh_utils.create_device_mesh(shape, list(devices), allow_split_physical_axes=True)


def data_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the batch is split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def path_name(path) -> str:
    """A tree path as `blocks/attn/qkv/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The partition of one parameter by `RULES`."""
    rule = next((rule for pattern, rule in RULES if re.search(pattern, path)), {})
    spec = [None] * len(shape)
    stacked = 1 if STACK.search(path) else 0
    for axis, dims in rule.items():
        for dim in (d + stacked if d >= 0 else d for d in dims):
            if mesh.shape[axis] > 1 and spec[dim] is None and shape[dim] % mesh.shape[axis] == 0:
                spec[dim] = axis
                break
    return PartitionSpec(*spec)


def tree_shardings(tree, mesh: Mesh):
    """A `NamedSharding` for every leaf of a tree of arrays or shapes; optimiser moments follow their parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, parameter_spec(path_name(path), leaf.shape, mesh)), tree
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over replica and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Everything everywhere: scalars, keys."""
    return NamedSharding(mesh, PartitionSpec())


def make_layout(mesh: Mesh, compute_dtype: str) -> Layout:
    """The model's three placement functions on this mesh (identity on one device)."""
    if mesh.size == 1:
        return Layout()
    constrain = jax.lax.with_sharding_constraint

    def rows(x):
        return constrain(x, batch_sharding(mesh))

    def heads(x):
        tensor = "tensor" if x.shape[-2] % mesh.shape["tensor"] == 0 else None
        return constrain(x, NamedSharding(mesh, PartitionSpec(BATCH_AXES, *[None] * (x.ndim - 3), tensor)))

    def gather(path, w):
        stored = parameter_spec(path, w.shape, mesh)
        gathered = PartitionSpec(*(axis if axis == "tensor" else None for axis in stored))
        if stored == gathered:
            return w

        # What travels is in the compute dtype; what comes out is in the parameter's, so that the gradient that comes
        # back is too. Its constraint makes the sum a reduce-scatter of one shard instead of an all-reduce of all.
        @jax.custom_vjp
        def gather_leaf(w):
            return constrain(w.astype(compute_dtype), NamedSharding(mesh, gathered)).astype(w.dtype)

        gather_leaf.defvjp(
            lambda w: (gather_leaf(w), None),
            lambda _, g: (constrain(g, NamedSharding(mesh, stored)),),
        )
        return gather_leaf(w)

    def weights(tree):
        return jax.tree_util.tree_map_with_path(lambda path, w: gather(path_name(path), w), tree)

    return Layout(rows, weights, heads)
