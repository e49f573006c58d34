"""Layers are one graph in every layout that compiles, and train as without."""

import compile_jobs
import pytest
from parity_layouts import FSDP, PP, RECOMPUTE, SP, TWO

pytestmark = pytest.mark.slow
FULL = "--use-torch-fsdp2"


@pytest.mark.parametrize(
    ("size", "flags"), [(2, [*FSDP, "--bf16"]), (2, [FULL, *RECOMPUTE]), (2, [*SP, *TWO]), (4, [*PP, *FSDP])]
)
def test_a_layer_is_one_graph_in_a_layout(size, flags, ranks, corpus):
    graphs, losses = ranks.run(size, compile_jobs.losses, [*corpus, *flags], True)[0]
    assert graphs == 1
    assert losses == ranks.run(size, compile_jobs.losses, [*corpus, *flags], False)[0][1]
