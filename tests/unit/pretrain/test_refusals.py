"""Layouts that cannot work are refused in one line with both numbers, before any process meets another."""

import pytest

from pretrain.checkpoint.files import latest_iteration
from pretrain.config.read import parse_config
from pretrain.parallel.mesh import Layout
from pretrain.parallel.pipeline import layers_of_stage, stages_of_rank
from proteinlm.errors import InputError

BASE = [
    *("--data-path", "x", "--save", "y", "--train-iters", "4", "--num-layers", "6", "--hidden-size", "32"),
    *("--num-attention-heads", "4", "--micro-batch-size", "2", "--global-batch-size", "48", "--seq-length", "64"),
]
PP = ["--pipeline-model-parallel-size", "2"]


@pytest.mark.parametrize(
    ("processes", "flags", "message"),
    [
        (
            6,
            ["--tensor-model-parallel-size", "4"],
            "size 1 = 4 must divide the 6 processes",
        ),
        (3, ["--tensor-model-parallel-size", "3"], "tensor-model-parallel-size 3 must divide num-attention-heads 4"),
        (8, ["--pipeline-model-parallel-size", "8"], "pipeline-model-parallel-size 8 is more than num-layers 6"),
        (5, [], "global-batch-size 48 must be a multiple of micro-batch-size 2 x 5"),
        (2, ["--num-distributed-optimizer-instances", "2"], "instances 2 needs --use-distributed-optimizer"),
        (
            4,
            ["--use-distributed-optimizer", "--num-distributed-optimizer-instances", "3"],
            "instances 3 must divide the 4 data-parallel replicas",
        ),
        (2, ["--pipeline-schedule", "zero-bubble"], "zero-bubble needs pipeline-model-parallel-size above 1, not 1"),
        (2, [*PP, "--pipeline-schedule", "interleaved"], "needs --num-layers-per-virtual-pipeline-stage"),
        (
            2,
            [*PP, "--pipeline-schedule", "1f1b", "--num-layers-per-virtual-pipeline-stage", "1"],
            "stage 1 does not go with it",
        ),
        (2, [*PP, "--num-layers-per-virtual-pipeline-stage", "2"], "num-layers 6 must be a multiple of .* 2 x .* 2"),
        (2, [*PP, "--pipeline-schedule", "zero-bubble", "--use-torch-fsdp2"], "zero-bubble with .* 2 keeps"),
        (2, [*PP, "--pipeline-schedule", "zero-bubble", "--compile"], "so --compile does not go with it"),
        (
            2,
            [*PP, "--pipeline-schedule", "zero-bubble", "--global-batch-size", "10"],
            "10 is 5 micro-batches a replica, which do not make 2 equal rounds",
        ),
    ],
)
def test_what_cannot_work_is_refused(processes, flags, message):
    with pytest.raises(InputError, match=message):
        parse_config([*BASE, *flags], world_size=processes)


def test_a_model_directory_is_no_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"^{tmp_path}: a model directory, .* converter --load {tmp_path} --save DIR"):
        latest_iteration(tmp_path)


def test_the_axes_of_a_layout():
    flags = [*PP, "--use-distributed-optimizer", "--num-distributed-optimizer-instances", "2"]
    layout = Layout.of(parse_config([*BASE, *flags, "--tensor-model-parallel-size", "2"], world_size=16), 16)
    assert layout.sizes == (2, 2, 2, 2)
    assert Layout.of(parse_config([*BASE, *PP], world_size=8), 8).sizes == (2, 4, 1, 1)


@pytest.mark.parametrize(("layers", "stages"), [(6, 4), (7, 3), (36, 5), (4, 4), (5, 2), (16, 1)])
def test_every_layer_is_in_one_stage_and_stages_differ_by_one_at_most(layers, stages):
    cut = [layers_of_stage(stage, stages, layers) for stage in range(stages)]
    assert [layer for part in cut for layer in part] == list(range(layers))
    sizes = [len(part) for part in cut]
    assert max(sizes) - min(sizes) <= 1 and sizes[-1] == min(sizes)


def test_interleaved_stages_go_round_the_processes():
    assert [stages_of_rank(2, rank, 8, 2) for rank in (0, 1)] == [[0, 2], [1, 3]]
    assert [stages_of_rank(2, rank, 8, None) for rank in (0, 1)] == [[0], [1]]
