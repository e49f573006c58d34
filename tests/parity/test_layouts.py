"""Every layout trains the model that one process trains: loss, every gradient, norm, weights and validation, to 1e-10.

float64, dropout 0, real packed batches, two clipped optimizer steps; gloo processes against one. The negative
controls break one thing each and must be seen by the same comparison.
"""

import parity_jobs as jobs
import pytest
import torch
from parity_layouts import FSDP, LAYOUTS, PP, TOLERANCE, TP, TWO, ZERO_BUBBLE, differences, marks
from parity_plan import planned, train_counted

from pretrain.train_step import SUMS


@pytest.fixture(scope="module")
def one_process(ranks, corpus) -> dict[str, torch.Tensor]:
    return ranks.run(1, jobs.train, corpus)[0]


@pytest.mark.parametrize("layout", [pytest.param(name, marks=marks(name)) for name in LAYOUTS])
def test_a_layout_trains_the_same_model(layout, ranks, corpus, one_process):
    """And each process sends what the planner counts for it, byte for byte."""
    size, flags = LAYOUTS[layout]
    answers = ranks.run(size, train_counted, [*corpus, *flags])
    for actual, _ in answers:  # every process reports the same
        wrong = {name: d for name, d in differences(actual, one_process).items() if not d <= TOLERANCE}
        assert not wrong, wrong
    counted = planned(size, [*corpus, *flags])
    assert sum(size for _, size in counted[0].values()) > 0
    assert [traffic for _, traffic in answers] == counted


@pytest.mark.slow
def test_replicas_sum_their_gradients_in_many_messages_during_the_backward_pass(ranks, corpus, one_process):
    for actual, sent in ranks.run(2, jobs.train_with_small_buckets, corpus):
        assert not [name for name, d in differences(actual, one_process).items() if not d <= TOLERANCE]
        assert len(sent) == jobs.STEPS and all(first == last > 5 for first, last in sent)


def test_the_steps_compared_are_worth_comparing(one_process):
    """Every weight has a gradient and moves, gradients are clipped, and the validation set is not empty."""
    assert all(value.abs().max() > 0 for name, value in one_process.items() if "key_value.bias" not in name)
    assert (one_process["norm"] > 0.5).all() and one_process["validation"][1] > 50


@pytest.mark.parametrize(
    ("sabotage", "size", "flags", "shows_in"),
    [
        (jobs.drop_position_ids, 2, PP, "loss"),
        (jobs.drop_boundaries, 2, PP, "loss"),
        (jobs.mean_of_means, 2, [], "norm"),
        (jobs.sum_every_micro_batch, 2, [], "norm"),
    ],
)
def test_a_broken_layout_is_seen(sabotage, size, flags, shows_in, ranks, corpus, one_process):
    actual = ranks.run(size, jobs.train, [*corpus, *flags], sabotage)[0]
    assert differences(actual, one_process)[shows_in] > 1e-4


@pytest.mark.parametrize("flags", [PP, pytest.param([*TP, *TWO], marks=pytest.mark.slow)])
def test_a_norm_of_one_process_is_seen(flags, ranks, corpus, one_process):
    """Not clipped here: each process would clip by a norm of its own, and the tied copies drift apart."""
    results = ranks.run(2, jobs.train, [*corpus, *flags, "--clip-grad", "0"], jobs.norm_of_one_process)
    first = torch.stack([answer["norm"][0] for answer in results])
    assert ((first - one_process["norm"][0]).abs() > 1e-4).all()


def test_an_untied_embedding_is_seen(ranks, corpus):
    """The two copies drift apart, which `gathered` refuses."""
    with pytest.raises(AssertionError, match=r"copies of word_embeddings\.weight differ"):
        ranks.run(2, jobs.train, [*corpus, *PP], jobs.untie_embedding)


@pytest.mark.slow
def test_layers_as_units_lose_gradients_under_zero_bubble(ranks, corpus, one_process):
    """Why FSDP2 wraps a whole stage there: per-layer units drop gradients, and nothing complains."""
    actual = ranks.run(4, jobs.train_with_layers_as_units, [*corpus, *ZERO_BUBBLE, *FSDP])[0]
    assert differences(actual, one_process)["norm"] > 1e-4


@pytest.mark.parametrize(
    ("flags", "gathers", "scatters", "sums"),
    [
        ([], 0, 0, 1),
        (FSDP, 5, 5, 0),
        pytest.param(["--use-torch-fsdp2"], 18, 5, 0, marks=pytest.mark.slow),
        pytest.param([*PP, *FSDP], 3, 3, 1, marks=pytest.mark.slow),
    ],
)
def test_gradients_travel_once_a_step(flags, gathers, scatters, sums, ranks, corpus):
    """Two or four micro-batches; FSDP2 has a unit for each of 4 layers and one for the rest (of a stage, 2 and 1).

    Its full form gathers each layer for 2 forward and 2 backward passes, and the rest for each of 2 micro-batches.
    Under a pipeline the one sum is the tied embedding's.
    """
    counts = ranks.run(4 if PP[0] in flags else 2, jobs.messages_of_a_step, [*corpus, *flags])[0]
    assert (counts["foreach_reduce"], counts["sum_together"] + counts["_send"]) == (scatters, sums)
    assert counts["foreach_all_gather"] == gathers


@pytest.mark.parametrize(
    ("flags", "gradients"),
    [
        ([], ["allreduce 14512"]),
        pytest.param(FSDP, [], marks=pytest.mark.slow),
        pytest.param(PP, ["allreduce 512"], marks=pytest.mark.slow),
    ],
)
def test_a_step_sends_one_message_beside_its_gradients(flags, gradients, ranks, corpus):
    """Norm, losses, counts and stops together. The control sends them twice."""
    message = f"allreduce {len(SUMS)}"
    for more in (0, 1):
        for counts in ranks.run(2, jobs.collectives_of_a_step, [*corpus, *flags], more):
            sums = {name: count for name, count in counts.items() if name.startswith("allreduce")}
            assert sums == {**dict.fromkeys(gradients, 1), message: 1 + more}


def test_a_pipeline_gets_each_micro_batch_as_it_is(ranks, corpus):
    """No empty segment in the boundaries, which kernels for packed sequences need not accept."""
    for boundaries in ranks.run(2, jobs.boundaries_of_a_step, [*corpus, *PP]):
        assert len(boundaries) == 4 and len({len(bounds) for bounds in boundaries}) > 1
        assert all((torch.tensor(bounds).diff() > 0).all() for bounds in boundaries)
