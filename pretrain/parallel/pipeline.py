"""Pipeline parallelism: the model cut into stages by layers, and micro-batches sent through them by a schedule.

A stage is a `ProteinBert` without the modules of the others: the first has the embeddings, the last the final LN and
the LM head, which where it is tied has its own copy of the word embedding (`gradients.Gradients` sums the two copies'
gradients); rotary positions are in all. What a stage sends on is the residual stream [T, h] ([T / tp, h] under sequence
parallelism), and back its gradient. Everything else that layers need (position ids, protein boundaries, masked
positions) every rank reads for itself and hands to its stages as tensors, so no stage can lose it.

Schedules: 1f1b; interleaved, with several smaller stages a rank (--num-layers-per-virtual-pipeline-stage); zero-bubble
(ZB1P, Qi et al. 2023: the backward pass for weights fills the bubble), with one or several stages a rank.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import Schedule1F1B, ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble

from pretrain.data.loader import Batch
from pretrain.parallel.mesh import World
from pretrain.parallel.overlap import Overlap
from pretrain.torch_internals import run_schedule
from proteinlm.network.model import ProteinBert

PipelineLoss = Callable[[Tensor, Batch], Tensor]


def stages_of_rank(pp: int, pp_rank: int, num_layers: int, layers_per_stage: int | None) -> list[int]:
    """Numbers of the stages that a pp rank holds: one, or every pp-th of num_layers / layers_per_stage."""
    count = pp if layers_per_stage is None else num_layers // layers_per_stage
    return list(range(pp_rank, count, pp))


def layers_of_stage(stage: int, num_stages: int, num_layers: int) -> range:
    """The layers of a stage; where they do not divide, later stages but the last take one more.

    The first stage also embeds and the last one also computes the LM head, so neither gets a spare layer first.
    """
    fewest, spare = divmod(num_layers, num_stages)
    richest_first = [*range(num_stages - 2, 0, -1), 0, num_stages - 1]
    rich = set(richest_first[:spare])
    sizes = [fewest + (number in rich) for number in range(num_stages)]
    return range(sum(sizes[:stage]), sum(sizes[: stage + 1]))


def cut(model: ProteinBert, stage: int, num_stages: int) -> ProteinBert:
    """Take out of `model` everything that is not stage `stage`'s; in place. Layers keep their names."""
    layers = layers_of_stage(stage, num_stages, len(model.layers))
    model.layers = nn.ModuleDict({str(number): model.layers[str(number)] for number in layers})
    if stage > 0:
        model.is_first_stage = False
        model.position_embeddings = model.embedding_layernorm = None
    if stage < num_stages - 1:
        model.final_layernorm = model.lm_head = None
    if stage > 0 and (stage < num_stages - 1 or model.config.untie_embeddings_and_output_weights):
        model.word_embeddings = None
    return model


class Parts(nn.ModuleList):
    """The stages that one process holds, under the names their parameters have in the whole model.

    overlap: sums gradients over plain replicas during the backward pass, where they are summed so.
    """

    overlap: Overlap | None = None

    def forward(self, *args, **kwargs):
        """Run the whole model, where one part is all of it."""
        (part,) = self
        return part(*args, **kwargs)

    def named_parameters(self, *args, **kwargs):
        for part in self:
            yield from part.named_parameters(*args, **kwargs)

    def state_dict(self, *args, **kwargs):
        return {name: value for part in self for name, value in part.state_dict(*args, **kwargs).items()}


class Pipeline:
    """Runs micro-batches forward and backward, or only forward, through all stages.

    rows, length, places: shape of every micro-batch, b rows of s tokens and m labels in all. Every process of the
    pipeline calls `run` with the same micro-batches.
    """

    def __init__(
        self,
        parts: Parts,
        stages: list[int],
        num_stages: int,
        world: World,
        schedule: str,
        shape: tuple[int, int, int],
        sequence_parallel: bool,
        autocast: torch.dtype | None,
    ):
        self.parts, self.stages, self.num_stages, self.world = parts, stages, num_stages, world
        self.schedule, self.shape = schedule, shape
        self.stream_ranks = world.layout.tp if sequence_parallel else 1
        self._loss: PipelineLoss | None = None  # of the run in progress
        self._built: dict[bool, tuple[int, object]] = {}  # for training, for evaluation: (micro-batches, schedule)
        if autocast:
            for part in parts:  # in the forward pass only: the schedule also runs the backward one
                part.forward = torch.autocast(world.device.type, autocast)(part.forward)

    def run(self, batches: list[Batch], loss: PipelineLoss, training: bool = True) -> None:
        """Forward and, in training, backward from loss(logits, batch) of every micro-batch, on the last stage alone."""
        world, self._loss = self.world, loss
        schedule = self._schedule(len(batches), training)
        batches = [batch.to(world.device) for batch in batches]
        names = ("position_ids", "masked_positions", "cu_seqlens")
        run_schedule(
            schedule,
            [(batch.tokens,) if world.is_first_stage else () for batch in batches],
            [{name: getattr(batch, name) for name in names} for batch in batches],
            batches if world.is_last_stage else None,
            training,
        )

    def _loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        return self._loss(logits, batch)

    def _schedule(self, count: int, training: bool):
        """A schedule is made for a number of micro-batches; the last one used is kept."""
        if self._built.get(training, (0,))[0] != count:
            self._built[training] = count, self._build(count)
        return self._built[training][1]

    def _build(self, count: int):
        stages = [self._stage(part, number) for part, number in zip(self.parts, self.stages, strict=True)]
        options = {"n_microbatches": count, "loss_fn": self._loss_of, "scale_grads": False}
        if self.schedule == "zero-bubble":
            return ScheduleInterleavedZeroBubble(stages, **options)
        if self.schedule == "interleaved":
            return ScheduleInterleaved1F1B(stages, **options)
        return Schedule1F1B(stages[0], **options)

    def _stage(self, part: ProteinBert, number: int) -> PipelineStage:
        """Shapes are given, so that nothing is run to find them out (it would draw random numbers).

        PyTorch before 2.13 refuses outputs of another dtype.
        """
        rows, length, places = self.shape
        dtype = part.compute_dtype or next(part.parameters()).dtype
        config = part.config
        shape, stream_dtype = (rows * length // self.stream_ranks, config.hidden_size), part.stream_dtype or dtype
        stream = torch.empty(shape, dtype=stream_dtype, device="meta", requires_grad=True)
        tokens = torch.empty(rows, length, dtype=torch.int64, device="meta")
        logits = torch.empty(places, config.padded_vocab_size // self.world.layout.tp, dtype=dtype, device="meta")
        return PipelineStage(
            part,
            number,
            self.num_stages,
            self.world.device,
            input_args=(tokens if number == 0 else stream,),
            output_args=(logits.requires_grad_() if number == self.num_stages - 1 else stream,),
            group=self.world.mesh.get_group("pp"),
        )
