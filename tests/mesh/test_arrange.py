"""Several slices: parameters are split within each and copied across, whatever order the devices come in."""

from dataclasses import dataclass

import numpy as np
import pytest

from cxr_jax.sharding import arrange


@dataclass(frozen=True)
class Device:
    """What the arrangement asks of a device."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


DEVICES = [Device(i, slice_index=i % 2) for i in range(16)]  # neighbours in the list are in different slices


@pytest.mark.parametrize("shape", [(2, 8, 1), (4, 4, 1), (4, 2, 2)])
def test_each_copy_of_the_parameters_lies_within_one_slice(shape):
    mesh = arrange(DEVICES, shape)
    assert mesh.shape == shape
    assert sorted(device.id for device in mesh.flat) == list(range(16))
    slices = np.vectorize(lambda device: device.slice_index)(mesh)
    assert all(len(set(copy.ravel())) == 1 for copy in slices)
    assert set(slices[:, 0, 0]) == {0, 1}


@pytest.mark.parametrize("shape", [(1, 16, 1), (1, 8, 2)])
def test_parameters_split_across_slices_are_refused(shape):
    with pytest.raises(ValueError, match="replica=1 must be a multiple of 2, the number of slices"):
        arrange(DEVICES, shape)


def test_one_slice_keeps_the_order_of_its_devices():
    devices = [Device(i, slice_index=0) for i in range(8)]
    assert [device.id for device in arrange(devices, (2, 2, 2)).flat] == list(range(8))
