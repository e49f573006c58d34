"""The log of a run and its FLOP count."""

import json
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch.utils.flop_counter import FlopCounterMode

from pretrain.interval import peak_flops, training_flops
from proteinlm.metrics_log import MetricsLog
from proteinlm.network import model
from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert


def read(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_appended_and_non_finite_values_become_null(tmp_path):
    log = MetricsLog(tmp_path)
    log.write({"iteration": 1, "lm_loss": 2.5})
    log.write({"iteration": 2, "lm_loss": math.nan, "grad_norm": math.inf})
    log.close()
    assert read(tmp_path) == [{"iteration": 1, "lm_loss": 2.5}, {"iteration": 2, "lm_loss": None, "grad_norm": None}]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    lines = [json.dumps({"iteration": i}) for i in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"iteration": 6, "lm_lo')
    log = MetricsLog(tmp_path, resume_at=3)
    log.write({"iteration": 4})
    log.close()
    assert [line["iteration"] for line in read(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("torn", ["{", '{"', '{"iteration": 3, "lm_lo'])
@pytest.mark.parametrize("resume_at", [None, 0])
def test_a_run_that_begins_anew_leaves_one_history(tmp_path, monkeypatch, torn, resume_at):
    """0: a finetuning run that resumes nothing, or a run from a converted checkpoint of iteration 0."""
    # TensorBoard reads a directory's files by name, where a process's tenth of one second comes before its ninth
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    for run in range(2):
        log = MetricsLog(tmp_path, tmp_path / "tb", resume_at)
        for iteration in (1, 2):
            log.write({"iteration": iteration, "lm_loss": 2.5})
        log.close()
        (tmp_path / "metrics.jsonl").open("a").write(torn)
        if run:
            assert (tmp_path / f"metrics.jsonl.{run}").read_text().endswith("}\n" + torn)
    log = MetricsLog(tmp_path, tmp_path / "tb", resume_at)
    log.write({"iteration": 1, "lm_loss": 2.0})
    log.close()
    assert read(tmp_path) == [{"iteration": 1, "lm_loss": 2.0}]
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("lm_loss")] == [(1, 2.0)]


def test_a_foreign_metrics_file_is_kept_aside(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("epoch,loss\n1,2\n")
    write_one(MetricsLog(tmp_path, resume_at=3))
    assert (tmp_path / "metrics.jsonl.1").read_text() == "epoch,loss\n1,2\n"
    assert (tmp_path / "metrics.jsonl").read_text() == LINE_4


def test_tensorboard_events_are_written(tmp_path):
    log = MetricsLog(tmp_path, tmp_path / "tb")
    log.write({"iteration": 1, "lm_loss": 2.5})
    log.close()
    assert list((tmp_path / "tb").glob("events.*"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position_embedding_type": "rope", "token_dropout": True, "mask_token_id": 1},
        {
            "swiglu": True,
            "untie_embeddings_and_output_weights": True,
            "add_bias_linear": False,
            "qk_layernorm": True,
            "embedding_layernorm": True,
            "position_offset": 2,
        },
        {"lm_head_transform": False, "normalization": "RMSNorm", "position_embedding_type": "none"},
    ],
)
def test_training_flops_equal_pytorchs_own_counter(options, monkeypatch):
    """Forward and backward of real proteins, every matrix product counted by PyTorch; parameters are the network's."""
    config = ModelConfig(
        hidden_size=32, num_layers=2, num_attention_heads=4, max_position_embeddings=64,
        hidden_dropout=0.0, attention_dropout=0.0, **options,
    )  # fmt: skip
    monkeypatch.setattr(model, "choose_backend", lambda *_: "reference")
    lengths = [40, 7, 64]
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    tokens = torch.randint(6, 31, (sum(lengths),))
    positions = torch.cat([torch.arange(n) for n in lengths])
    masked = torch.arange(0, 100, 9)
    net = ProteinBert(config).train()
    with FlopCounterMode(display=False) as counter:
        net(tokens, positions, bounds, masked).exp().sum().backward()
    flops = training_flops(config, sum(lengths), sum(n * n for n in lengths), len(masked))
    assert counter.get_total_flops() == pytest.approx(flops, rel=1e-3)
    assert sum(parameter.numel() for parameter in net.parameters()) == config.num_parameters()


def test_unknown_devices_have_no_peak():
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None


def write_one(log):
    log.write({"iteration": 4})
    log.close()


LINE, LINE_4 = '{"iteration": 2}', '{"iteration": 4}\n'


@pytest.mark.parametrize(
    "tail", ["", "\n", "\0" * 5, "\n\0\0\0", "\n   \n", '\n{"iteration": 3, "l\0\0', "\n{\0", " \0\n"]
)
def test_what_a_power_cut_leaves_is_dropped(tmp_path, tail):
    (tmp_path / "metrics.jsonl").write_text(LINE + tail)
    write_one(MetricsLog(tmp_path, resume_at=3))
    assert (tmp_path / "metrics.jsonl").read_text() == LINE + '\n{"iteration": 4}\n'


@pytest.mark.parametrize(
    ("text", "number", "good"),
    [
        (b'{"iteration": 1, "lm\n{"iteration": 2}\n', 1, ['{"iteration": 2}']),  # only the last can be cut short
        (b'{"iteration": 1}\n{"iteration": 2, "lm\xff": 1}\n{"iteration": 3}\n', 2,
         ['{"iteration": 1}', '{"iteration": 3}']),
        (b'{"iteration": 1}\n{"step": 2}\n', 2, ['{"iteration": 1}']),
        (b'{"iteration": "1"}\n', 1, []),
        (b'{"iteration": 1.5}\n', 1, []),
        (b'{"iteration": 1, "iteration": 2}\n{"iteration": 3}\n', 1, ['{"iteration": 3}']),
        (b'{"iteration": 1' + b"0" * 5000 + b'}\n{"iteration": 3}\n', 1, ['{"iteration": 3}']),
        (b"[" * 100_000 + b'\n{"iteration": 3}\n', 1, ['{"iteration": 3}']),
        (b"[1]\n", 1, []),
        (b"{}\n", 1, []),
    ],
    ids=["cut", "byte", "step", "text", "fraction", "twice", "digits", "deep", "list", "empty"],
)  # fmt: skip
def test_lines_that_are_no_metrics_stop_no_resume(tmp_path, capsys, text, number, good):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text)
    MetricsLog(tmp_path, resume_at=3).close()
    assert path.read_bytes() == text and list(tmp_path.iterdir()) == [path]  # until there is something to write
    write_one(MetricsLog(tmp_path, resume_at=3))
    assert path.read_text() == "".join(f"{line}\n" for line in good) + LINE_4
    assert (tmp_path / "metrics.jsonl.1").read_bytes() == text
    notice = f"notice: {path}: line {number} holds no metrics (1 such lines); the log as it was is {path}.1\n"
    assert capsys.readouterr().out == notice


def test_an_empty_line_is_no_damage(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n\n{"iteration": 2}\n')
    write_one(MetricsLog(tmp_path, resume_at=3))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 1}\n{"iteration": 2}\n' + LINE_4


def test_an_earlier_log_is_moved_to_the_next_free_name(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("epoch,loss\n1,2\n")
    (tmp_path / "metrics.jsonl.1").write_text("older")
    write_one(MetricsLog(tmp_path, resume_at=3, same_run=False))
    assert (tmp_path / "metrics.jsonl.1").read_text() == "older"
    assert (tmp_path / "metrics.jsonl.2").read_text() == "epoch,loss\n1,2\n"
    path = tmp_path / "metrics.jsonl"
    assert capsys.readouterr().out == f"notice: {path}: the log of an earlier run is now {path}.2\n"
    path.write_text("")
    write_one(MetricsLog(tmp_path))  # an empty log is nothing to keep
    assert not (tmp_path / "metrics.jsonl.3").exists()


@pytest.mark.parametrize("flags", [{}, {"resume_at": 3}, {"resume_at": 3, "same_run": False}])
def test_a_run_that_never_logs_changes_nothing(tmp_path, flags):
    MetricsLog(tmp_path / "new", tmp_path / "tb", **flags).close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 5}\n{"itera')
    MetricsLog(tmp_path, tmp_path / "tb", **flags).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 5}\n{"itera'
