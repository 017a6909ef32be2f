"""Counts and bytes read from small HLO texts, against numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from cxr_jax.planning.collectives import collectives_of, groups_of, iota_order, summary
from cxr_jax.planning.hlo import Program, parse
from cxr_jax.planning.traffic import memory_traffic

# Eight devices; loop.hlo: a loop of 24 layers gathers a bf16 [64, 32] weight among 4 and scatters its float32 gradient.
LOOP = (Path(__file__).parent / "loop.hlo").read_text()


@pytest.fixture(scope="module")
def loop() -> Program:
    return parse(LOOP)


def test_kinds_counts_and_bytes_of_a_loop(loop):
    """Among 4: 3/4 of what is gathered or scattered; among 2 replicas: all of the shard (2 x 1/2)."""
    found = summary(collectives_of(loop, places=[0] * 8))
    weight, gradient = 64 * 32 * 2, 64 * 32 * 4
    assert found == {
        "all-gather": {"count": 24, "bytes": 24 * weight * 3 / 4, "far_bytes": 0.0},
        "all-reduce": {"count": 24, "bytes": 24 * gradient / 4, "far_bytes": 0.0},
        "reduce-scatter": {"count": 24, "bytes": 24 * gradient * 3 / 4, "far_bytes": 0.0},
    }


def test_a_trip_count_can_be_read_from_the_condition():
    """The TPU compiler notes none: `i < 24`."""
    plain = LOOP.replace(', backend_config={"known_trip_count":{"n":"24"}}', "")
    compare = """  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %n.1 = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %n.1), direction=LT
"""
    tpu = plain.replace("  ROOT %less = pred[] constant(true)\n", compare)
    assert tpu != plain != LOOP
    assert [one.times for one in collectives_of(parse(tpu), places=[0] * 8)] == [24, 24, 24]
    assert [one.times for one in collectives_of(parse(plain), places=[0] * 8)] == [1, 1, 1]


def test_what_goes_between_slices_is_sent_through_the_hosts():
    """As the TPU compiler writes it for four slices: each device sends its share to the one like it in the others."""
    attributes = (
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_host_transfer_rendezvous="a",_xla_megascale_target="{1,2,3,4}x{0:1}",_xla_megascale_transfer_type="%s"}'
    )
    text = f"""HloModule m

ENTRY %main (x: f32[16,8,128], y: f32[2]) -> f32[2] {{
  %x = f32[16,8,128]{{2,1,0}} parameter(0)
  %y = f32[2]{{0}} parameter(1)
  %t = token[] after-all()
  %send.1 = (f32[16,8,128], u32[], token[]) send(%x, %t), channel_id=1, {attributes % "ALL_REDUCE"}
  %done.1 = token[] send-done(%send.1), channel_id=1, is_host_transfer=true
  %send.2 = (f32[2], u32[], token[]) send(%y, %t), channel_id=2, {attributes % "ALL_GATHER"}
  ROOT %done.2 = token[] send-done(%send.2), channel_id=2, is_host_transfer=true
}}
"""
    reduced, gathered = collectives_of(parse(text), places=[0, 0, 1, 1, 2, 2, 3, 3])
    assert (reduced.kind, reduced.devices, reduced.near) == ("all-reduce", 4, 0)
    assert reduced.far == 16 * 8 * 128 * 4 * 2 * 3 / 4
    assert (gathered.kind, gathered.near, gathered.far) == ("all-gather", 0, 3 * 2 * 4)


def test_a_gather_spread_over_fusions_counts_once():
    """Start, a step beside other work, and end have one channel; the same channel in another loop is another gather."""
    spread = "%spread (p: bf16[4]) -> bf16[8] {\n  %p = bf16[4] parameter(0)\n"
    spread += "  ROOT %g = bf16[8] all-gather(%p), channel_id=7, replica_groups={{0,1}}, dimensions={0}\n}\n\n"
    text = f"""HloModule m

{spread}{spread.replace("%spread", "%more")}ENTRY %main (x: bf16[4]) -> bf16[8] {{
  %x = bf16[4]{{0}} parameter(0)
  %start = bf16[8]{{0}} fusion(%x), kind=kCustom, calls=%spread
  ROOT %end = bf16[8]{{0}} fusion(%x), kind=kCustom, calls=%more
}}
"""
    (one,) = collectives_of(parse(text), places=[0, 0])
    assert (one.times, one.near) == (1, 8.0)


def test_bytes_between_slices(loop):
    """Two slices of four: only the sum over replicas leaves a slice."""
    found = summary(collectives_of(loop, places=[0] * 4 + [1] * 4))
    assert {kind: row["far_bytes"] for kind, row in found.items()} == {
        "all-gather": 0.0,
        "all-reduce": 24 * 64 * 32 * 4 / 4,
        "reduce-scatter": 0.0,
    }


def test_a_group_across_slices_first_reduces_within_them():
    """An all-reduce of 400 bytes among 4 devices, 2 in each of 2 slices: 2/2 of 400 within, and of 200 across."""
    text = """HloModule m

ENTRY %main (x: f32[100]) -> f32[100] {
  %x = f32[100]{0} parameter(0)
  ROOT %r = f32[100]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
}
"""
    (one,) = collectives_of(parse(text), places=[0, 0, 1, 1])
    assert (one.payload, one.near, one.far, one.devices) == (400, 400, 200, 4)


def test_origins_are_kept(loop):
    origins = {one.kind: one.origin for one in collectives_of(loop, places=[0] * 8)}
    assert origins["all-gather"] == "jit(step)/while/body/gather"


def test_memory_traffic_of_a_loop(loop):
    """Per layer: a slice of the stack read and written, gather, scatter and sum with their operands and results."""
    shard, weight, gradient = 16 * 32 * 2, 64 * 32 * 2, 64 * 32 * 4
    index = 4
    gathered = shard + weight + shard  # the tuple of a start names its operand again
    per_layer = (2 * shard + index) + gathered + (gradient + gradient // 4) + 2 * gradient // 4
    assert memory_traffic(loop) == 24 * per_layer


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups(groups, expected):
    text = f"ENTRY %m () -> f32[] {{\n  ROOT %r = f32[] all-reduce(%x), {groups}, to_apply=%add\n}}\n"
    (instruction,) = parse(text).computations["m"].instructions
    np.testing.assert_array_equal(groups_of(instruction, 4), expected)


def test_iota_orders_are_those_of_numpy():
    expected = np.arange(12).reshape(2, 3, 2).transpose(2, 0, 1).reshape(4, 3)
    np.testing.assert_array_equal(iota_order("[4,3]<=[2,3,2]T(2,0,1)"), expected)


def test_another_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("module @jit_step attributes {}")
