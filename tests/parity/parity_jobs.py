"""What the parity tests run on every process of a job: real training steps in float64, looked at from inside."""

import contextlib
import itertools
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.checkpoint.state import optimizer_state
from pretrain.config.read import parse_config
from pretrain.data.loader import PackedLoader
from pretrain.parallel import apply, gradients, overlap
from pretrain.trainer import Trainer

TINY = [
    *("--num-layers", "4", "--hidden-size", "16", "--num-attention-heads", "4", "--max-position-embeddings", "32"),
    *("--seq-length", "32", "--micro-batch-size", "2", "--global-batch-size", "8", "--train-iters", "8"),
    *("--make-vocab-size-divisible-by", "32", "--init-method-std", "0.2", "--lr", "1e-3", "--clip-grad", "0.5"),
    *("--hidden-dropout", "0", "--attention-dropout", "0", "--num-workers", "0", "--device", "cpu"),
    *("--split", "90,10,0", "--log-interval", "1", "--eval-interval", "1000", "--eval-iters", "0"),
]

STEPS = 2  # the second starts from moved weights, with moments of the first


def make_trainer(flags: list[str], dtype: torch.dtype = torch.float64) -> Trainer:
    """A Trainer of this job on the tiny model; the last of a repeated flag counts."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    with with_default_dtype(dtype):
        return Trainer(parse_config([*TINY, *flags], world_size=size, notify=lambda notice: None))


@contextlib.contextmanager
def with_default_dtype(dtype: torch.dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def steps(trainer: Trainer, count: int):
    """Yield the values of `count` optimizer steps."""
    training = trainer.config.training
    loader = PackedLoader(
        trainer.train_data, training.micro_batch_size, trainer.schedule.batch_size,
        trainer.counters.consumed_train_samples, dp_rank=trainer.world.dp_rank, dp_size=trainer.world.dp_size,
    )  # fmt: skip
    for _, micro_batches in zip(range(count), loader, strict=False):
        trainer.train_step(micro_batches)
        yield trainer.advance().values


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(trainer: Trainer, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors by name, of every stage. Copies that must be equal (tied embedding, replicas) are checked to be."""
    local = {name: whole(tensor.detach()).clone() for name, tensor in tensors.items()}
    if trainer.world.alone:
        return local
    everyone: list = [None] * trainer.world.size
    dist.all_gather_object(everyone, local)
    merged: dict[str, Tensor] = {}
    for part in everyone:
        for name, tensor in part.items():
            first = merged.setdefault(name, tensor)
            assert torch.allclose(first, tensor, rtol=0, atol=1e-14), f"copies of {name} differ"
    return merged


def train(flags: list[str], sabotage=None, count: int = STEPS) -> dict:
    """`count` steps: per step loss and norm, every gradient of the first, and the weights and validation loss after.

    sabotage(trainer) breaks something on purpose before the first step.
    """
    trainer = make_trainer(flags)
    if sabotage:
        sabotage(trainer)
    gradients, honest = [], trainer.step._update

    def looked_at(*arguments):
        if not gradients:
            named = trainer.step.gradients.named.items()  # a lost gradient counts as 0
            gradients.append(
                gathered(trainer, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named})
            )
        return honest(*arguments)

    trainer.step._update = looked_at
    values = list(steps(trainer, count))
    evaluation = trainer.evaluate(trainer.valid_sets["valid"])
    return {
        "loss": torch.tensor([v["lm_loss"] for v in values], dtype=torch.float64),
        "loss on [MASK]": torch.tensor([v["mask_loss"] for v in values], dtype=torch.float64),
        "norm": torch.tensor([v["grad_norm"] for v in values], dtype=torch.float64),
        "validation": torch.tensor(evaluation, dtype=torch.float64),
        **{f"gradient of {name}": value for name, value in gradients[0].items()},
        **gathered(trainer, trainer.model.state_dict()),
    }


def dropout_masks(flags: list[str]) -> dict[str, Tensor]:
    """What the first micro-batch of one step drops: outputs of the dropout modules, and what attention draws."""
    trainer = make_trainer(flags)
    seen: dict[str, Tensor] = {}

    def look(name: str):
        def hook(module, inputs, output):
            seen.setdefault(name, (output.detach() != 0).double())

        return hook

    def first_draw(name: str, rng):
        @contextlib.contextmanager
        def looked_at():
            with rng():
                seen.setdefault(name, torch.rand(8, generator=torch.Generator().set_state(torch.get_rng_state())))
                yield

        return looked_at

    for part in getattr(trainer.model, "children", list)():
        part.embedding_dropout.register_forward_hook(look("embedding"))
        for number, layer in part.layers.items():
            uses = itertools.cycle(["after attention", "after MLP"])
            layer.dropout.register_forward_hook(
                lambda *call, number=number, uses=uses: look(f"layers.{number} {next(uses)}")(*call)
            )
            layer.attention.dropout_rng = first_draw(f"layers.{number} attention", layer.attention.dropout_rng)
    list(steps(trainer, 1))
    return seen


def run_and_resume(
    flags: list[str], total: int, stop_at: int | None = None, load: str | None = None, prepare=None
) -> dict:
    """A whole run of the trainer to `total` iterations, or to `stop_at`; losses it logged, weights, moments.

    prepare(trainer) changes something before the first step.
    """
    more = ["--train-iters", str(total)]
    more += ["--exit-interval", str(stop_at)] if stop_at else []
    more += ["--load", load] if load else []
    trainer = make_trainer([*flags, *more])
    began = trainer.counters.iteration
    if prepare:
        prepare(trainer)
    trainer.run()
    state = optimizer_state(trainer.model, trainer.optimizer)
    tensors = gathered(trainer, trainer.model.state_dict())
    for moment in state.keys() - {"step"}:
        tensors |= {f"{moment} {name}": value for name, value in gathered(trainer, state[moment]).items()}
    return {"began": began, "state": tensors, "dropout": torch.rand(4)}


def messages_of_a_step(flags: list[str]) -> dict[str, int]:
    """How many gathers of weights and sums of gradients one optimizer step sends between replicas."""
    trainer = make_trainer(flags)
    list(steps(trainer, 1))
    fsdp = _fsdp_param_group
    places = {"foreach_all_gather": fsdp, "foreach_reduce": fsdp, "sum_together": gradients, "_send": overlap.Overlap}
    counts, honest = dict.fromkeys(places, 0), {name: getattr(place, name) for name, place in places.items()}

    def counted(name: str):
        def call(*arguments, **options):
            counts[name] += 1
            return honest[name](*arguments, **options)

        return call

    for name, place in places.items():
        setattr(place, name, counted(name))
    try:
        list(steps(trainer, 1))
    finally:
        for name, place in places.items():
            setattr(place, name, honest[name])
    return counts


class Collectives(TorchDispatchMode):
    """Counts c10d's operations by name, all-reduces by name and number of elements."""

    def __init__(self):
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func.overloadpacket.__name__.strip("_")
            if name.startswith("allreduce"):
                name += f" {sum(tensor.numel() for tensor in args[0])}"
            self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def collectives_of_a_step(flags: list[str], more: int = 0) -> dict[str, int]:
    """Every collective operation of the second step. more: the step's message is sent so many times more."""
    trainer = make_trainer(flags)
    list(steps(trainer, 1))
    honest = trainer.world.sum_over_all

    def repeated(values: Tensor) -> Tensor:
        for _ in range(more):
            honest(values.clone())
        return honest(values)

    trainer.world.sum_over_all = repeated
    with Collectives() as seen:
        list(steps(trainer, 1))
    return seen.counts


def boundaries_of_a_step(flags: list[str]) -> list[list[int]]:
    """The cu_seqlens that this process's stages get in one step."""
    trainer, seen = make_trainer(flags), []
    for part in trainer.model:
        part.register_forward_pre_hook(
            lambda module, inputs, options: seen.append(options["cu_seqlens"].tolist()), with_kwargs=True
        )
    list(steps(trainer, 1))
    return seen


def round_frequencies(trainer: Trainer) -> None:
    """inv_freq as trained ESM-2 files have it: not what the base gives, here plainly so."""
    for part in trainer.model:
        part.rotary_embeddings.inv_freq.mul_(1.1).copy_(part.rotary_embeddings.inv_freq.half())


# ---- what each negative control breaks


def drop_position_ids(trainer: Trainer) -> None:
    """Every protein's residues are all in its first place, as where a stage never gets the ids."""
    first = trainer.model[0].position_embeddings
    if first is not None:
        first.register_forward_pre_hook(lambda module, inputs: (torch.zeros_like(inputs[0]),))


def drop_boundaries(trainer: Trainer) -> None:
    """The last stage takes a micro-batch for one long protein."""
    if trainer.world.is_last_stage:
        part = trainer.model[0]
        honest = part._plan
        part._plan = lambda cu_seqlens, position_ids: honest(cu_seqlens[[0, -1]], position_ids)


def without_rotation(trainer: Trainer) -> None:
    """The last stage does not turn its queries and keys."""
    if trainer.world.is_last_stage:
        trainer.model[0].rotary_embeddings = None


def scale_by_the_first_tokens(trainer: Trainer) -> None:
    """Every rank scales its tokens as if they were the first rank's."""
    for part in trainer.model:
        part.own_tokens = lambda values: values.chunk(trainer.world.layout.tp)[0]


def swap_the_gate(trainer: Trainer) -> None:
    """Each rank has the other's part of a layer's gate."""
    gate = trainer.model[0].layers["1"].mlp.dense_h_to_4h_gate.weight
    parts = whole(gate.detach()).chunk(trainer.world.size)
    gate.data.to_local().copy_(parts[1 - trainer.world.rank])


def normalise_own_heads(trainer: Trainer) -> None:
    """Each rank normalises the queries over its own heads."""
    norm, ranks = trainer.model[0].layers["1"].attention.q_layernorm, trainer.world.size
    norm.forward = lambda x: F.layer_norm(x.unflatten(-1, (ranks, -1)), (x.shape[-1] // ranks,)).flatten(-2)


def one_matrix(trainer: Trainer) -> None:
    """Muon takes queries, keys and values for one matrix."""
    for group in trainer.optimizer.param_groups:
        group["matrices"] = min(1, group["matrices"])


def mean_of_means(trainer: Trainer) -> None:
    """Each replica divides by its own number of masked residues, and the replicas are averaged."""
    honest = trainer.step._accumulate

    def accumulate(micro_batches, weight):
        masked = sum(batch.num_masked for batch in micro_batches)
        total = float(trainer.world.sum_over_all(torch.tensor(float(masked))))
        return honest(micro_batches, weight * total / (masked * trainer.world.dp_size))

    trainer.step._accumulate = accumulate


def norm_of_one_process(trainer: Trainer) -> None:
    honest = trainer.world.sum_over_all
    trainer.world.sum_over_all = lambda values: torch.cat([values[:1].clone(), honest(values)[1:]])


def sum_every_micro_batch(trainer: Trainer) -> None:
    """Gradients are summed over the replicas in each backward pass, those of earlier ones again."""
    honest = trainer.model.overlap.expect
    trainer.model.overlap.expect = lambda last: honest(True)


def untie_embedding(trainer: Trainer) -> None:
    """Each copy of the word embedding is stepped by its own gradient."""
    trainer.step.gradients.ends_group = None


def train_with_small_buckets(flags: list[str]) -> tuple[dict, list[tuple[int, int]]]:
    """Training, and (buckets sent when a step's backward passes were over, buckets in all) of each step."""
    seen: list[tuple[int, int]] = []

    def look(trainer: Trainer) -> None:
        summed = trainer.model.overlap
        honest = summed.finish

        def finish():
            seen.append((summed.next, len(summed.buckets)))
            honest()

        summed.finish = finish

    overlap.BUCKET, whole_bucket = 1000, overlap.BUCKET
    try:
        return train(flags, look), seen
    finally:
        overlap.BUCKET = whole_bucket


def train_with_layers_as_units(flags: list[str]) -> dict:
    """FSDP2 wraps each layer, and lets its weights go after use, also under the zero-bubble schedule."""
    honest = apply.shard
    apply.shard = lambda model, world, full, one_unit, *dtypes: honest(model, world, True, False, *dtypes)
    try:
        return train(flags)
    finally:
        apply.shard = honest


# ---- whole runs and faults


def run_in_fp32(flags: list[str]) -> str:
    return make_trainer(flags, torch.float32).run()


def losses_in_fp32(flags: list[str]) -> list[float]:
    return [values["lm_loss"] for values in steps(make_trainer(flags, torch.float32), 3)]


def overflow_in_one_process(flags: list[str]) -> tuple[list[bool], list[float]]:
    """Two fp16 steps, an infinite gradient in the last process in the first: did weights move, and the loss scales."""
    scaling = ["--initial-loss-scale", "1024", "--hysteresis", "1"]
    trainer = make_trainer([*flags, *scaling], torch.float32)
    honest = trainer.step.gradients.finish
    done: list[int] = []

    def finish():
        honest()
        done.append(1)
        if len(done) == 1 and trainer.world.rank == trainer.world.size - 1:
            next(p for n, p in trainer.step.gradients.named.items() if n.endswith("4h.bias")).grad.mul_(torch.inf)

    trainer.step.gradients.finish = finish
    moved, scales = [], [float(trainer.scaler.scale)]
    before = [whole(p.detach()).clone() for p in trainer.model.parameters()]
    for _ in steps(trainer, 2):
        now = [whole(p.detach()).clone() for p in trainer.model.parameters()]
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, now, strict=True)))
        scales.append(float(trainer.scaler.scale))
    return moved, scales


def fall_silent(flags: list[str]) -> tuple[float, str]:
    """The second process goes to sleep after a step; how long the first waits for it, and its error."""
    trainer = make_trainer(flags)
    list(steps(trainer, 1))
    if trainer.world.rank == 1:
        time.sleep(8)
        return 0.0, ""
    began = time.monotonic()
    try:
        list(steps(trainer, 1))
    except RuntimeError as error:
        return time.monotonic() - began, str(error)
    return 0.0, "nothing"
