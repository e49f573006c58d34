"""The planner's clock, schedules and choice, against numbers worked by hand."""

import json
import math
from dataclasses import replace

import pytest

from pretrain.config.read import parse_config
from pretrain.gpus import GPUS, find_gpu
from pretrain.parallel.mesh import Layout
from pretrain.plan.cluster import Link, make_cluster, usual_rates
from pretrain.plan.lengths import lengths_of_rows
from pretrain.plan.page import to_html
from pretrain.plan.report import as_text, describe, layout_flags, make_plan, start_command, to_dict
from pretrain.plan.schedule import in_flight, orders, simulate
from pretrain.plan.search import Candidate, Search, configurations
from pretrain.plan.timing import Work, group_link, message_seconds, stage_time
from proteinlm.errors import InputError
from proteinlm.tokenizer import build_tokenizer

NODE, NETWORK = Link(1e-6, 100e9), Link(10e-6, 10e9)


@pytest.fixture
def cluster():
    """2 nodes of 4 GPUs with round numbers."""
    made = make_cluster("H100", 4, 2, price=2.0)
    rates = replace(made.rates, node=NODE, network=NETWORK, half=500e12, knee=0, hbm=1e12, launch=0.0, compiled=0.5)
    return replace(made, rates=replace(rates, attention=(200e12, 100e12)))


@pytest.fixture
def config():
    flags = ["--num-layers", "4", "--hidden-size", "64", "--num-attention-heads", "4", "--seq-length", "64"]
    flags += ["--max-position-embeddings", "64", "--global-batch-size", "32", "--train-iters", "10", "--bf16"]
    return parse_config(flags, required=(), notify=lambda notice: None)


# ---- the machine


def test_a_device_is_found_by_its_name():
    assert find_gpu("NVIDIA H100 80GB HBM3") is GPUS["H100"] and find_gpu("NVIDIA H100 NVL") is GPUS["H100 NVL"]
    assert find_gpu("Tesla V100-SXM2-32GB") is GPUS["V100"] and find_gpu("NVIDIA GH200 480GB") is GPUS["GH200"]
    assert find_gpu("Radeon") is find_gpu("NVIDIA RTX A4000") is find_gpu("NVIDIA L40") is None


def test_an_unknown_gpu_and_a_calibration_of_another_are_refused(tmp_path):
    with pytest.raises(InputError, match="--gpu H10 is not one of"):
        make_cluster("H10", 8, 1)
    path = tmp_path / "rates.json"
    measured = {"gpu": "NVIDIA A100-SXM4-80GB", "gemm_tflops": [{"m": 8, "n": 8, "k": 8, "tflops": 1}], "error": 0.05}
    path.write_text(json.dumps(measured))
    assert make_cluster("A100", 8, 1, calibration=str(path)).rates.error == 0.05
    with pytest.raises(InputError, match="measured on 'NVIDIA A100-SXM4-80GB', but --gpu is H100"):
        make_cluster("H100", 8, 1, calibration=str(path))
    path.write_text(json.dumps(measured | {"gemm": 3}))
    with pytest.raises(InputError, match="gemm is not a key of a calibration"):
        make_cluster("A100", 8, 1, calibration=str(path))
    for wrong in ({"gemm_tflops": []}, {"hbm_gbs": 0}, {"error": math.nan}, {"error": 1.1}, {"links": []}):
        path.write_text(json.dumps(measured | wrong))
        with pytest.raises(InputError, match="not a calibration"):
            make_cluster("A100", 8, 1, calibration=str(path))


def test_measured_products_go_before_the_data_sheet():
    rates = usual_rates(GPUS["H100"], 50)
    assert rates.product(1e12, (128, 4096, 4096), half=True) == pytest.approx(1e12 / (0.72 * 989e12 / 2))
    rates = replace(rates, gemm=((4096, 4096, 4096, 600e12), (4096, 64, 4096, 60e12)))
    assert rates.product(6e12, (5000, 4096, 3000), half=True) == pytest.approx(0.01)
    assert rates.product(6e12, (4096, 4096, 80), half=True) == pytest.approx(0.1)


# ---- messages


def test_groups_lie_on_nodes_as_ranks_do(cluster):
    layout = Layout(pp=1, dp_replicate=2, dp_shard=2, tp=2)
    assert group_link(cluster, layout, "tp") == (2, 1, NODE)
    assert group_link(cluster, layout, "dp_shard") == (2, 1, NODE)
    ranks, nodes, link = group_link(cluster, layout, "dp_replicate")
    assert (ranks, nodes, link.bandwidth) == (2, 2, 10e9)
    ranks, nodes, link = group_link(cluster, Layout(1, 8, 1, 1), "dp")
    assert (ranks, nodes, link.bandwidth) == (8, 2, 40e9)  # the four GPUs of a node bring four network cards


def test_messages_take_latency_and_bytes(cluster):
    tp4, dp8 = Layout(1, 2, 1, 4), Layout(1, 8, 1, 1)
    gather = message_seconds(cluster, tp4, "tp", "all_gather", 2, 8e9)
    assert gather == pytest.approx(2 * 3e-6 + 3 / 4 * 8e9 / 100e9)
    assert message_seconds(cluster, dp8, "dp", "all_gather", 1, 0) == pytest.approx(6 * 1e-6 + 10e-6)
    assert message_seconds(cluster, dp8, "dp", "all_reduce", 1, 8e9) == pytest.approx(
        2 * 16e-6 + 2 * 7 / 8 * 8e9 / 40e9
    )
    assert message_seconds(cluster, tp4, "pp", "send", 3, 8e9) == 0.0  # one stage
    assert message_seconds(cluster, Layout(2, 1, 1, 4), "pp", "send", 3, 1e9) == pytest.approx(3 * 10e-6 + 0.1)


def test_a_stage_by_hand(cluster):
    """A product of 1e12 FLOPs, 2e9 other bytes, attention of 1e11 a layer; gathers longer than the forward pass."""
    per = {
        ("work", "product", "forward", 1000, 1000, "flops"): 1e12,
        ("work", "product", "forward", 1000, 1000, "calls"): 1.0,
        ("work", "product", "forward", 1000, 1000, "bytes"): 1e6,
        ("work", "attention", "forward"): 2.0,
        ("work", "attention", "backward"): 2.0,
        ("work", "bytes", "forward"): 2e9,
        ("traffic", "dp_shard", "all_gather", "float32", "forward", "bytes"): 2e9,
        ("traffic", "dp_shard", "all_gather", "float32", "forward", "calls"): 1.0,
    }
    once = {
        ("work", "bytes", "step"): 3e9,
        ("traffic", "dp", "all_reduce", "float32", "step", "bytes"): 1e9,
        ("traffic", "dp", "all_reduce", "float32", "step", "calls"): 1.0,
    }
    layout = Layout(1, 1, 8, 1)
    one, two = ({**{k: n * v for k, v in per.items()}, **once} for n in (4, 5))
    time = stage_time(cluster, layout, Work(True, True, 1e11), one, two, 4)
    forward = 1e12 / 500e12 + 2e9 * 0.5 / 1e12 + 2 * 1e11 / 200e12
    backward = 2 * 2.5 * 1e11 / 100e12
    gather = message_seconds(cluster, layout, "dp_shard", "all_gather", 1, 2e9)
    assert gather > forward and time.forward == pytest.approx(gather)
    assert time.backward == pytest.approx(backward) and time.compute == pytest.approx(forward + backward)
    assert time.exposed == pytest.approx(message_seconds(cluster, layout, "dp", "all_reduce", 1, 1e9))
    assert time.step == pytest.approx(3e9 / 1e12)


# ---- schedules


def test_one_forward_one_backward_by_hand():
    """Two stages, two micro-batches, 1 s forward and 2 s backward: 3 micro-batches' time; 1 of 3 is the bubble."""
    assert simulate("1f1b", 2, 1, 2, [1, 1], [2, 2], 0.0) == pytest.approx((9.0, 1 / 3))
    assert simulate("1f1b", 2, 1, 2, [1, 1], [2, 2], 0.5)[0] == pytest.approx(10.0)
    assert simulate("1f1b", 1, 1, 5, [1], [2], 9.0) == (15.0, 0.0)
    full = simulate("1f1b", 4, 1, 100, [1] * 4, [2] * 4, 0.0)
    assert full[1] == pytest.approx(3 / 103)  # (P - 1) / (m + P - 1)


def test_other_schedules_wait_less():
    waits = [simulate("1f1b", 4, 1, 8, [2] * 4, [4] * 4, 0.0)[1]]
    waits.append(simulate("interleaved", 4, 2, 8, [1] * 8, [2] * 8, 0.0)[1])
    waits.append(simulate("zero-bubble", 4, 1, 8, [2] * 4, [4] * 4, 0.0)[1])
    assert waits[0] > waits[1] > 0 and waits[0] > waits[2] > 0


def test_micro_batches_in_flight_are_the_schedules():
    assert [in_flight(order) for order in orders("1f1b", 4, 1, 8)] == [{0: 4}, {1: 3}, {2: 2}, {3: 1}]
    assert sum(in_flight(orders("interleaved", 4, 2, 8)[0]).values()) > 4
    for schedule, pieces in (("1f1b", 1), ("interleaved", 2), ("zero-bubble", 1), ("zero-bubble", 2)):
        for order in orders(schedule, 4, pieces, 8):
            assert sum(kind == "F" for _, kind, _ in order) == 8 * pieces
            assert sum(kind in "BI" for _, kind, _ in order) == 8 * pieces


# ---- lengths, search, choice


def test_lengths_decide_attention():
    rows = lengths_of_rows(2176)
    assert 280 < rows.squares / rows.real_tokens < 480 and rows.real_tokens == 0.99 * 2176
    assert lengths_of_rows(64).squares / lengths_of_rows(64).real_tokens < 64


def test_only_what_the_configuration_allows(config, cluster):
    made = list(configurations(config, cluster))
    layouts = {Layout.of(c, 8) for c in made}
    assert Layout(1, 8, 1, 1) in layouts and Layout(1, 2, 4, 1) in layouts and Layout(2, 1, 1, 4) in layouts
    assert max(layout.pp for layout in layouts) == 4  # layers
    for c in made:
        assert c.training.global_batch_size == 32
        layout, p = Layout.of(c, 8), c.parallel
        count = 32 // (c.training.micro_batch_size * layout.dp_replicate * layout.dp_shard)
        assert count >= 1 and (layout.pp == 1 or p.pipeline_schedule != "1f1b" or count >= layout.pp)
        assert not (p.pipeline_schedule == "zero-bubble" and p.use_torch_fsdp2)


def candidates(config, cluster) -> list[Candidate]:
    """Replicas, faster shards, and something faster still that does not fit."""
    configs = {Layout.of(c, 8): c for c in configurations(config, cluster)}
    numbers = [(Layout(1, 8, 1, 1), "none", 100.0, 30e9), (Layout(1, 1, 8, 1), "optimizer", 110.0, 20e9)]
    numbers.append((Layout(2, 1, 1, 4), "none", 120.0, 90e9))
    return [
        Candidate(
            configs[layout], layout, cut, "1f1b" if layout.pp > 1 else None, 4,
            {"weights": memory / 4, "gradients": memory / 4, "optimizer": memory / 2, "activations": 0.0},
            {("dp", "step"): 1e9}, 64 / speed, 0.1, speed, 0.4,
        )
        for layout, cut, speed, memory in numbers
    ]  # fmt: skip


def plan_of(made, config, cluster):
    model = config.model_config(build_tokenizer("iupac"))
    return make_plan("python -m pretrain.plan", config, model, cluster, lengths_of_rows(64), 8.64e6, made)


@pytest.mark.parametrize(("asked", "memory", "tp"), [(1, 30e9, 1), (1, 90e9, 4), (2, 30e9, 4)])
def test_tensor_parallelism_is_counted_where_it_can_be_chosen(config, cluster, monkeypatch, asked, memory, tp):
    example = candidates(config, cluster)[0]
    tried = []

    def candidate(search, config):
        tried.append(config.parallel.tensor_model_parallel_size)
        return replace(example, config=config, layout=Layout.of(config, 8), memory={"weights": memory})

    monkeypatch.setattr(Search, "candidate", candidate)
    parallel = replace(config.parallel, tensor_model_parallel_size=asked)
    model = config.model_config(build_tokenizer("iupac"))
    assert len(Search(replace(config, parallel=parallel), model, cluster, lengths_of_rows(64)).all()) == len(tried)
    assert max(tried) == tp


def test_the_fastest_that_fits_is_recommended(config, cluster):
    made = candidates(config, cluster)
    plan = plan_of(made, config, cluster)
    assert plan.best is made[1] and plan.candidates[0] is made[2]
    slower = f"{describe(made[0])} is 9% slower"
    assert plan.reason == f"the fastest of the 2 layouts that fit, in 20.0 of 80 GB a GPU; {slower}"
    near = [replace(made[0], tokens_per_second=109.0), *made[1:]]
    assert plan_of(near, config, cluster).best is near[0]  # simpler, and nearly as fast
    assert plan.days(plan.best) == pytest.approx(8.64e6 / 110 / 86_400)
    assert plan.cost(plan.best) == pytest.approx(8.64e6 / 110 / 3600 * 8 * 2.0)


def test_the_command_starts_the_recommended_layout(config, cluster):
    made = candidates(config, cluster)
    plan = plan_of(made, config, cluster)
    given = ["--num-layers", "4", "--hidden-size", "64", "--num-attention-heads", "4", "--seq-length", "64", "--bf16"]
    given += ["--max-position-embeddings", "64", "--global-batch-size", "32", "--train-iters", "10"]
    for candidate in made:
        words = [*given, *layout_flags(config, candidate)]
        assert parse_config(words, required=(), world_size=8, notify=lambda notice: None) == candidate.config
    assert start_command(plan, given).startswith("torchrun --nnodes 2 --rdzv-backend c10d")


def test_nothing_fits_says_what_is_closest(config, cluster):
    made = [replace(c, memory={"weights": 1e11, "activations": 0.0, "gradients": 0.0, "optimizer": n}) for n, c in
             enumerate(candidates(config, cluster))]  # fmt: skip
    with pytest.raises(InputError, match=r"no layout fits 80 GB a GPU: the closest, .*needs 100.0 GB.* would help"):
        plan_of(made, config, cluster)
    with pytest.raises(InputError, match="no layout of 8 GPUs divides global-batch-size 32"):
        plan_of([], config, cluster)


def test_the_plan_as_json_text_and_page(config, cluster):
    plan = plan_of(candidates(config, cluster), config, cluster)
    values = json.loads(json.dumps(to_dict(plan, ["--bf16"])))
    assert values["recommended"] == 1 and values["layouts"][1]["name"] == describe(plan.best)
    layout = values["layouts"][1]
    assert layout["layout"] == {"pp": 1, "dp_replicate": 1, "dp_shard": 8, "tp": 1} and layout["fits"]
    assert layout["memory_gb"] == {"weights": 5.0, "gradients": 5.0, "optimizer": 10.0, "activations": 0.0}
    assert layout["traffic_gb"] == {"dp": {"step": 1.0}} and math.isfinite(layout["days"])
    text = as_text(plan, values, 5)
    assert "±25%" in text and plan.reason in text and values["start"] in text and "1 do not fit" in text
    page = to_html(values)
    assert page.count("<circle") == 3 and page.count("<rect") == 1  # two and a ring, one with tp and pp
    assert "http" not in page.replace("http-equiv", "") and "</script><script>" in page
