"""What `cxr_jax.evaluate` calls its columns: no run may take the place of another."""

from cxr_jax.evals.columns import column_name


def test_runs_on_equal_networks_keep_columns_of_their_own():
    teacher, random = ({"pretrained": {"network": network}} for network in ("teacher", "random"))
    columns = [column_name("runs/a", teacher, ())]
    columns.append(column_name("runs/b", teacher, columns))
    columns.append(column_name("runs/c", random, columns))
    assert columns == ["pretrained (teacher)", "pretrained (teacher), runs/b", "random network"]
