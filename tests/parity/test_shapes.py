"""Every option of the network trains in every layout what it trains in one process, to 1e-10.

As test_layouts.py, with shapes that use many options at once.
"""

import parity_jobs as jobs
import pytest
from parity_layouts import LAYOUTS, PP, SHAPES, SP, TOLERANCE, TP, TWO, differences

pytestmark = pytest.mark.slow

CASES = {
    "esm2": ("dp2", "fsdp2", "tp2", "tp2-sp", "pp2", "fsdp2-pp2-tp2-sp"),
    "esmc": (
        *("dp2", "fsdp2", "tp2", "tp2-sp", "pp2", "dp2-pp2-tp2", "fsdp2-pp2-tp2-sp", "fsdp2-full-recompute"),
        *("tp2-sp-recompute", "fsdp2-pp2-interleaved", "pp2-tp2-sp-zero-bubble"),
    ),
    "esm1b": ("tp2-sp", "pp2"),
    "muon": ("dp2", "fsdp2", "fsdp2-full", "hybrid-2x2", "tp2", "pp2", "fsdp2-pp2-tp2-sp"),
    "amplify": ("tp2-sp", "pp2"),
}


@pytest.fixture(scope="module")
def one_process(ranks, flags_of):
    """What one process trains, by shape; trained when first asked for."""
    made: dict[str, dict] = {}

    def trained(shape: str) -> dict:
        if shape not in made:
            made[shape] = ranks.run(1, jobs.train, flags_of(shape))[0]
        return made[shape]

    return trained


@pytest.mark.parametrize(("shape", "layout"), [(shape, layout) for shape in CASES for layout in CASES[shape]])
def test_a_layout_trains_the_same_model(shape, layout, ranks, flags_of, one_process):
    size, flags = LAYOUTS[layout]
    for actual in ranks.run(size, jobs.train, [*flags_of(shape), *flags]):
        wrong = {name: d for name, d in differences(actual, one_process(shape)).items() if not d <= TOLERANCE}
        assert not wrong, wrong


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shapes_are_worth_comparing(shape, one_process):
    """Every weight has a gradient and moves, gradients are clipped, and no two shapes are one model."""
    result = one_process(shape)
    assert all(value.abs().max() > 0 for name, value in result.items() if "key_value.bias" not in name)
    assert (result["norm"] > 0.5).all() and result["validation"][1] > 50
    assert len({float(one_process(other)["loss"][0]) for other in SHAPES}) == len(SHAPES)


@pytest.mark.parametrize(
    ("sabotage", "shape", "flags"),
    [
        (jobs.without_rotation, "esm2", PP),
        (jobs.one_matrix, "muon", PP),
        (jobs.scale_by_the_first_tokens, "esmc", [*SP, *TWO]),
        (jobs.swap_the_gate, "esmc", [*TP, *TWO]),
        (jobs.normalise_own_heads, "esmc", [*TP, *TWO]),
    ],
)
def test_a_broken_layout_is_seen(sabotage, shape, flags, ranks, flags_of, one_process):
    actual = ranks.run(2, jobs.train, [*flags_of(shape), *flags], sabotage)[0]
    assert abs(actual["loss"] - one_process(shape)["loss"]).max() > 1e-4
