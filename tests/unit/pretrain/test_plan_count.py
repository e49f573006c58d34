"""What the planner makes of a few small steps is what whole steps of larger ones are counted to be."""

import functools
import shutil
import subprocess

import pytest
import torch

from pretrain.config.read import parse_config
from pretrain.parallel import pipeline
from pretrain.parallel.mesh import Layout
from pretrain.plan.__main__ import main
from pretrain.plan.count import count
from pretrain.plan.stages import Settings, Stages, _flat
from proteinlm.errors import InputError
from proteinlm.tokenizer import build_tokenizer

pytestmark = pytest.mark.slow

SHAPE = ["--hidden-size", "32", "--num-attention-heads", "4", "--seq-length", "48", "--max-position-embeddings", "48"]
SHAPE += ["--make-vocab-size-divisible-by", "32", "--train-iters", "4", "--global-batch-size", "192", "--bf16"]
TP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
PP = ["--pipeline-model-parallel-size", "4"]
FULL, OPTIMIZER = ["--use-torch-fsdp2"], ["--use-distributed-optimizer"]
RECOMPUTE = ["--recompute-granularity", "full"]


def configured(flags):
    config = parse_config([*SHAPE, *flags], required=(), notify=lambda notice: None)
    return config, config.model_config(build_tokenizer("iupac"))


@pytest.fixture(scope="module")
def stages():
    return Stages(*configured([]))


# settings, layers, rows, micro-batches, shards; flags of the whole step, its layers, its rank
CASES = {
    "whole": (Settings("whole", 1), 4, 3, 3, 1, [], 4, 0),
    "recomputed": (Settings("whole", 1, "none", True), 4, 3, 3, 1, RECOMPUTE, 4, 0),
    "full": (Settings("whole", 1, "full"), 5, 2, 3, 6, FULL, 5, 0),
    "optimizer": (Settings("whole", 1, "optimizer"), 4, 2, 3, 5, OPTIMIZER, 4, 0),
    "middle": (Settings("middle", 1), 4, 2, 5, 1, PP, 16, 2),
    "last": (Settings("last", 1), 4, 2, 5, 1, PP, 16, 3),
    "tp": (Settings("whole", 2), 4, 2, 3, 1, TP, 4, 0),
    "middle-optimizer": (Settings("middle", 1, "optimizer"), 4, 2, 5, 3, [*PP, *OPTIMIZER], 16, 6),
    "middle-full": (Settings("middle", 1, "full"), 4, 2, 5, 3, [*PP, *FULL], 16, 6),
    "tp-full": (Settings("whole", 2, "full"), 4, 2, 2, 3, [*TP, *FULL], 4, 0),
    "full-recomputed": (Settings("whole", 1, "full", True), 4, 2, 2, 3, [*FULL, *RECOMPUTE], 4, 0),
}


@functools.cache
def whole_step(case) -> dict:
    _, _, rows, micro_batches, shard, flags, all_layers, rank = CASES[case]
    config, model = configured([*flags, "--num-layers", str(all_layers), "--micro-batch-size", str(rows)])
    pp = config.parallel.pipeline_model_parallel_size
    layout = Layout(pp, 1, shard, config.parallel.tensor_model_parallel_size)
    return _flat(count(config, model, layout, rank, micro_batches))


@pytest.mark.parametrize("case", CASES)
def test_small_steps_determine_large_ones(case, stages):
    """Bytes sent and products exactly, and without FSDP2 every kernel; weights and their states; peaks to 2%."""
    settings, *sizes = CASES[case][:5]
    small, whole = stages.at(settings, *sizes), whole_step(case)
    # but for the step's one message of 80 bytes, fp64, over whatever group has all the processes
    exact = ("traffic", "work")
    for key in {k for k in (*small, *whole) if k[0] in exact and k != ("work", "bytes", "step") and "float64" not in k}:
        # what FSDP2 does beside its messages is in proportion to a shard, and much only where layers are tiny
        close = 0.2 if key[1] in ("bytes", "kernels") and CASES[case][0].cut != "none" else 1e-9
        assert small.get(key, 0) == pytest.approx(whole.get(key, 0), rel=close, abs=1e-6), key
    for category in ("weights", "optimizer"):
        assert small["state", category] == pytest.approx(whole["state", category], rel=5e-3)
    assert peak(small) == pytest.approx(peak(whole), rel=0.02)


def peak(values) -> float:
    segments = {}
    for key, size in values.items():
        if key[0] == "peak" and key[1] not in ("saved", "backward of the inner layer"):
            segments[key[1]] = segments.get(key[1], 0) + size
    return max(segments.values())


def test_a_step_of_other_sizes_is_seen(stages):
    settings, layers, rows, micro_batches, shard, *_ = CASES["full"]
    whole = whole_step("full")
    gathered = next(key for key in whole if key[:3] == ("traffic", "dp_shard", "all_gather") and key[-1] == "bytes")
    for sizes in ((layers + 1, micro_batches, shard), (layers, micro_batches + 1, shard), (layers, micro_batches, 7)):
        assert stages.at(settings, sizes[0], rows, *sizes[1:])[gathered] != whole[gathered]


@pytest.mark.parametrize("flags", [[], OPTIMIZER])
def test_a_pipeline_declares_its_logits_as_they_come(monkeypatch, flags):
    """In half precision they have not the weights' dtype, and PyTorch before 2.13 compares."""
    stages, logits = [], []
    make, loss = pipeline.PipelineStage, pipeline.Pipeline._loss_of
    monkeypatch.setattr(pipeline, "PipelineStage", lambda *call, **named: stages.append(named) or make(*call, **named))
    monkeypatch.setattr(pipeline.Pipeline, "_loss_of", lambda *call: logits.append(call[1]) or loss(*call))
    config, model = configured([*PP[:1], "2", *flags, "--num-layers", "2", "--micro-batch-size", "1"])
    shards = 2 if flags else 1
    count(config, model, Layout(2, 1, shards, 1), shards, 2)
    (declared,) = stages[-1]["output_args"]
    assert {(t.shape, t.dtype, t.stride()) for t in logits} == {(declared.shape, torch.bfloat16, declared.stride())}
    assert declared.dtype == torch.bfloat16


def test_heads_of_any_size():
    """The kernels want multiples of 8, so these are padded, and scaled by the size they had: here in fp32."""
    config, model = configured(["--hidden-size", "24", "--no-bf16", "--num-layers", "1", "--micro-batch-size", "1"])
    assert count(config, model, Layout(1, 1, 1, 1), 0, 1).work


def test_the_command_plans_and_writes(tmp_path, capsys):
    html, path = tmp_path / "plan.html", tmp_path / "plan.json"
    cluster = ["--gpus-per-node", "1", "--nodes", "1", "--price-per-gpu-hour", "2"]
    main([*SHAPE, "--num-layers", "2", "--micro-batch-size", "2", *cluster, "--html", str(html), "--json", str(path)])
    out = capsys.readouterr().out
    assert "Recommended (*)" in out and "torchrun --nproc-per-node 1 -m pretrain" in out
    text = html.read_text()
    assert "</html>" in text and path.stat().st_size > 1000
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser")
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [*words, "--enable-logging=stderr", html.as_uri()], capture_output=True, text=True, timeout=60
    )
    assert "CONSOLE" not in done.stderr and text.count("<tr") == done.stdout.count("<tr")


def test_what_cannot_be_planned_is_one_line():
    with pytest.raises(InputError, match="--nodes 0 must be more than 0"):
        main([*SHAPE, "--nodes", "0"])
    with pytest.raises(InputError, match="--gpus-per-node 1180591620717411303424 must be at most 4096"):
        main([*SHAPE, "--gpus-per-node", str(2**70)])
    with pytest.raises(InputError, match=r"no layout of .* GPUs divides global-batch-size"):  # and in a moment
        main([*SHAPE, "--num-layers", "2", "--nodes", str(2**70 + 1)])
    with pytest.raises(InputError, match=r"--price-per-gpu-hour -1.0 must be more than 0"):
        main([*SHAPE, "--price-per-gpu-hour", "-1"])
    with pytest.raises(InputError, match="--gpu abacus is not one of"):
        main([*SHAPE, "--gpu", "abacus"])
    with pytest.raises(InputError, match="no layout of 14 GPUs divides global-batch-size 192"):
        main([*SHAPE, "--num-layers", "2", "--gpus-per-node", "7", "--nodes", "2"])
