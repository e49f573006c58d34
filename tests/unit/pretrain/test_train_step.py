"""One optimizer step: it is what PyTorch's own parts give, the host reads nothing of it, a bad one changes nothing."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import lines, trainer, weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.checkpoint.state import optimizer_state
from pretrain.config.validate import for_world
from pretrain.parallel.mesh import Layout, World
from pretrain.parallel.pipeline import Parts
from pretrain.train_step import TrainStep
from proteinlm.errors import InputError
from proteinlm.loss import masked_lm_loss
from proteinlm.network import model as network
from proteinlm.optim import LossScaler, build_optimizer

PLAIN = ("--train-iters", "8", "--hidden-dropout", "0", "--attention-dropout", "0", "--eval-interval", "1000")
FP16 = ("--fp16", "--initial-loss-scale", "1024")


def global_batches(run, count: int) -> list:
    return [micro_batches for _, micro_batches in zip(range(count), run._loader(), strict=False)]


def deviations(prefix, folder, sabotage=lambda step: None) -> dict[str, float]:
    """The largest over three steps in float64, from PyTorch's own parts.

    Those are the mean cross-entropy of the whole batch, nn.utils.clip_grad_norm_ and AdamW's for-loop.
    """
    torch.set_default_dtype(torch.float64)
    try:
        run = trainer(prefix, folder, *PLAIN, "--clip-grad", "0.5", "--weight-decay", "0.1")
        reference = copy.deepcopy(run.model)
    finally:
        torch.set_default_dtype(torch.float32)
    sabotage(run.step)
    groups = [{"params": [p for p in reference.parameters() if (p.dim() > 1) == decayed]} for decayed in (True, False)]
    oracle = torch.optim.AdamW(groups, weight_decay=0.0, foreach=False, fused=False)
    oracle.param_groups[0]["weight_decay"] = 0.1
    worst = {"loss": 0.0, "norm": 0.0, "moments": 0.0, "weights": 0.0}
    for micro_batches in global_batches(run, 3):
        run.train_step(micro_batches)
        values = run.advance().values
        logits = [reference(b.tokens, b.position_ids, b.cu_seqlens, b.masked_positions) for b in micro_batches]
        loss = F.cross_entropy(torch.cat(logits), torch.cat([batch.labels for batch in micro_batches]))
        oracle.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        assert norm > 0.5
        for group in oracle.param_groups:
            group["lr"] = values["learning_rate"]
        oracle.step()
        moments = optimizer_state(run.model, run.optimizer)["exp_avg"]
        pairs = [(moments[name], oracle.state[p]["exp_avg"]) for name, p in reference.named_parameters()]
        now = {
            "loss": abs(values["lm_loss"] - loss.item()),
            "norm": abs(values["grad_norm"] / norm.item() - 1),
            "moments": max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs if b.abs().max() > 1e-12),
            "weights": float(
                (weights(run) - torch.cat([p.detach().flatten() for p in reference.parameters()])).abs().max()
            ),
        }
        worst = {name: max(value, now[name]) for name, value in worst.items()}
    return worst


def test_steps_are_those_of_pytorchs_own_parts(prefix, tmp_path):
    """The kernel reads its divisor in fp32: hence 1e-7 in what was divided, and what follows from it."""
    worst = deviations(prefix, tmp_path / "whole")
    assert max(worst.values()) < 1e-7, worst

    def divide_by_more(step: TrainStep) -> None:
        honest = step._update
        step._update = lambda sums, weight: honest(sums, weight * 1.001)

    def forget_the_last_micro_batch(step: TrainStep) -> None:
        honest = step._accumulate
        step._accumulate = lambda micro_batches, weight: honest(micro_batches[:-1], weight)

    assert deviations(prefix, tmp_path / "more", divide_by_more)["norm"] > 5e-4
    assert deviations(prefix, tmp_path / "less", forget_the_last_micro_batch)["weights"] > 1e-4


class HostReads(TorchDispatchMode):
    """Counts what would make the host wait for a GPU, on a CPU: values read, shapes that depend on values."""

    READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2")

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.READS:
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("flags", [(), FP16, ("--bf16", "--checkpoint-activations")])
def test_the_host_reads_nothing_of_a_step(prefix, tmp_path, monkeypatch, flags):
    run = trainer(prefix, tmp_path, *PLAIN[:2], *flags)
    batches, plan, loss = global_batches(run, 3), run.model[0]._plan, run.step.loss
    run.train_step(batches[0])

    def planned(*arguments):  # the CPU's attention reads boundaries; for the GPU's see the test with fake tensors
        before = len(reads.seen)
        result = plan(*arguments)
        del reads.seen[before:]
        return result

    monkeypatch.setattr(run.model[0], "_plan", planned)
    with HostReads() as reads:
        run.train_step(batches[1])
    assert reads.seen == []
    monkeypatch.setattr(run.step, "loss", lambda *call: loss(*call) * (1.0 if loss(*call).item() else 0.0))
    with HostReads() as reads:
        run.train_step(batches[2])
    assert reads.seen == ["_local_scalar_dense"] * 4  # two losses of two micro-batches


class Copies(TorchFunctionMode):
    """Names of the calls by which a program takes a tensor to the host."""

    CALLS = (Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.item, Tensor.__float__, Tensor.__bool__, Tensor.__int__)

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.CALLS:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
@pytest.mark.slow
def test_a_step_can_be_taken_with_fake_tensors(prefix, tmp_path, monkeypatch, precision):
    """They have no values, as for a GPU's kernels: what needs one fails."""
    monkeypatch.setattr(network, "choose_backend", lambda *_: "flash")
    real = trainer(prefix, tmp_path, *PLAIN, precision)
    config, device = for_world(real.config, 1), torch.device("cpu")
    batches = global_batches(real, 1)[0]
    with FakeTensorMode() as mode, Copies() as copies:
        model = Parts([network.ProteinBert(real.model_config)])
        scaler = LossScaler(1024.0, device=device) if precision == "--fp16" else None
        optimizer = build_optimizer(model, 1e-3, 0.01)
        step = TrainStep(config, World(Layout(), device), model, masked_lm_loss, None, optimizer, scaler, 4)
        fake = [batch._map(mode.from_tensor) for batch in batches]
        step(fake, 1e-3)
        assert copies.seen == []
        norm = step.gradients.squared_norm
        step.gradients.squared_norm = lambda: norm().cpu()
        step(fake, 1e-3)
        assert copies.seen == ["cpu"]
        step.gradients.squared_norm = lambda: torch.tensor(float(norm()))
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            step(fake, 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("flags", [(), FP16, ("--bf16",)])
def test_no_kernel_of_a_step_makes_the_host_wait(prefix, tmp_path, flags):
    run = trainer(prefix, tmp_path, "--train-iters", "8", *flags, "--device", "cuda")
    batches = [[batch.pin_memory() for batch in step] for step in global_batches(run, 4)]
    run.train_step(batches[0])  # kernels are loaded
    try:
        torch.cuda.set_sync_debug_mode("error")
        for micro_batches in batches[1:3]:
            run.train_step(micro_batches)
        honest = run.step.loss
        run.step.loss = lambda *call: honest(*call) * honest(*call).item()
        with pytest.raises(RuntimeError, match="synchroniz"):
            run.train_step(batches[3])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [math.isfinite(run.advance().values["lm_loss"]) for _ in range(3)] == [True] * 3


@pytest.mark.parametrize("good", [0, 2])
@pytest.mark.parametrize("flags", [(), FP16])
def test_a_skipped_step_leaves_weights_moments_and_counters(prefix, tmp_path, flags, good):
    """Bit for bit, as the first step of a run and later; a step that is taken is the control."""
    run = trainer(prefix, tmp_path, *PLAIN, *flags)
    batches = global_batches(run, good + 2)

    def state() -> list[Tensor]:
        moments = optimizer_state(run.model, run.optimizer).values()
        return [weights(run), *(value.clone() for named in moments for value in named.values())]

    for micro_batches in batches[:good]:
        run.train_step(micro_batches)
    before, honest = state(), run.step.loss
    run.step.loss = lambda logits, labels: honest(logits, labels) * math.inf
    run.train_step(batches[good])
    assert all(torch.equal(a, b) for a, b in zip(state(), before, strict=True))
    run.step.loss = honest
    run.train_step(batches[good + 1])
    assert not any(torch.equal(a, b) for a, b in zip(state()[:2], before[:2], strict=True))
    assert [run.advance().values["skipped"] for _ in batches] == [False] * good + [True, False]


TIMES = ("seconds", "tokens_per_second", "real_tokens_per_second")


def history(folder) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines(folder)]


@pytest.mark.parametrize("bad", [(), (3, 4, 8)])
def test_a_run_whose_steps_are_read_late_is_the_same_run(prefix, tmp_path, bad):
    """As on a GPU: evaluations, checkpoints, lines of metrics and of skipped steps, fp16's scale, the last step."""
    flags = ("--train-iters", "8", "--log-interval", "2", "--eval-interval", "3", "--save-interval", "4", "--fp16")
    runs = []
    for lag in (0, 1):
        run = trainer(prefix, tmp_path / str(lag), *flags, "--initial-loss-scale", "1024", "--hysteresis", "1")
        honest, run.lag = run.step.loss, lag
        run.step.loss = lambda *call, run=run, honest=honest: (
            honest(*call) * (math.nan if run._started() + 1 in bad else 1.0)
        )
        assert run.run() == "completed" and not run.pending
        runs.append(run)
    assert history(tmp_path / "0") == history(tmp_path / "1") and torch.equal(weights(runs[0]), weights(runs[1]))
    metas = [sorted((tmp_path / str(lag)).glob("iter_*/meta.json")) for lag in (0, 1)]
    assert [path.parent.name for path in metas[0]] == [path.parent.name for path in metas[1]]
    for pair in zip(*metas, strict=True):
        first, second = (json.loads(path.read_text()) for path in pair)
        assert all(first[part] == second[part] for part in ("counters", "interval", "loss_scaler"))


def test_a_row_of_skipped_steps_and_a_signal_are_noticed_one_step_late(prefix, tmp_path):
    flags = ("--train-iters", "50", "--max-skipped-iterations", "2")
    run = trainer(prefix, tmp_path / "nan", *flags)
    honest, run.lag = run.step.loss, 1
    run.step.loss = lambda *call: honest(*call) * (math.nan if run._started() + 1 >= 4 else 1.0)
    with pytest.raises(InputError, match=r"in 2 iterations in a row, up to 5 "):
        run.run()
    assert [line["iteration"] for line in lines(tmp_path / "nan")] == [1, 2, 3, 4, 5] and run._started() == 6
    run = trainer(prefix, tmp_path / "stop", *flags)
    honest, run.lag = run.step.loss, 1

    def loss(*call):
        if run._started() == 2:
            run.stop.set()
        return honest(*call)

    run.step.loss = loss
    assert run.run() == "preempted"
    assert run.counters.iteration == run.state.saved_at == len(lines(tmp_path / "stop")) == 4


def test_exit_duration_ends_the_run(prefix, tmp_path):
    run = trainer(prefix, tmp_path, "--train-iters", "50", "--exit-duration-in-mins", "1e-9")
    assert run.run() == "exit-duration-in-mins" and run.counters.iteration == 1


def test_only_a_gpu_gets_pinned_memory(prefix, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run = trainer(prefix, tmp_path, *PLAIN)
    assert not run._loader().pin_memory
    run.device = torch.device("cuda", 0)
    assert run._loader().pin_memory
