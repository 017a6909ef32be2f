"""Planning: what a compiled training step needs and how fast it can be at best, on machines that are not there.

In: a topology's name, abstract state and batch, a step. Out: a plan. `cxr_jax.plan` is its entry.
"""
