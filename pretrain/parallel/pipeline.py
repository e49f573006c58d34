"""Pipeline parallelism: the model cut into stages by layers, and micro-batches sent through them by a schedule.

A stage is a `ProteinBert` without the modules of the others: the first has the embeddings, the last the final LN and
the LM head, which where it is tied has its own copy of the word embedding (`replicas.Gradients` sums the two copies'
gradients); rotary positions are in all. What a stage sends on is the residual stream [T, h] ([T / tp, h] under sequence
parallelism), and back its gradient. Everything else that layers need (position ids, protein boundaries, masked
positions) every rank reads for itself and hands to its stages as tensors, so no stage can lose it.

Schedules: 1f1b; interleaved, with several smaller stages a rank (--num-layers-per-virtual-pipeline-stage); zero-bubble
(ZB1P, Qi et al. 2023: the backward pass for weights fills the bubble), with one or several stages a rank.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import Schedule1F1B, ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble

from pretrain.data.loader import Batch
from pretrain.parallel.mesh import World
from proteinlm.network.model import ProteinBert

NO_TOKEN = -1  # no token has this id


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
    """The stages that one process holds, under the names their parameters have in the whole model."""

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

    loss(logits, labels) is a sum over labelled positions. rows, length, places: shape of every micro-batch, b rows of
    s tokens and m labels in all. Every process of the pipeline calls `step` and `evaluate` with the same micro-batches.
    """

    def __init__(
        self,
        parts: Parts,
        stages: list[int],
        num_stages: int,
        world: World,
        schedule: str,
        loss: Callable[[Tensor, Tensor], Tensor],
        shape: tuple[int, int, int],
        sequence_parallel: bool,
        autocast: torch.dtype | None,
    ):
        self.parts, self.stages, self.num_stages, self.world = parts, stages, num_stages, world
        self.schedule, self.shape = schedule, shape
        self.stream_ranks = world.layout.tp if sequence_parallel else 1
        self._loss, self._weight = loss, 1.0
        self._loss_sums = torch.zeros(2, dtype=torch.float64, device=world.device)
        self._built: dict[bool, tuple[int, object]] = {}  # for training, for evaluation: (micro-batches, schedule)
        if autocast:
            for part in parts:  # in the forward pass only: the schedule also runs the backward one
                part.forward = torch.autocast(world.device.type, autocast)(part.forward)

    def step(self, batches: list[Batch], weight: float, mask_id: int) -> Tensor:
        """Forward and backward of a step's micro-batches. Adds the gradients of weight x loss.

        Returns two sums, fp64 [2]: of the loss, and of the loss where the model is shown [MASK]. They are computed by
        the last stage's processes; the others return 0.
        """
        self._weight = weight
        return self._run(batches, mask_id, training=True)

    def evaluate(self, batches: list[Batch]) -> Tensor:
        """The loss sum, forward only."""
        return self._run(batches, NO_TOKEN, training=False)[0]

    def _run(self, batches: list[Batch], mask_id: int, training: bool) -> Tensor:
        self._loss_sums.zero_()
        schedule = self._schedule(len(batches), training)
        run = schedule.step if training else schedule.eval
        tokens, labels, others = _stacked(batches, mask_id, self.world.device)
        run(
            *((tokens,) if self.world.is_first_stage else ()),
            target=labels if self.world.is_last_stage else None,
            return_outputs=False,
            **others,
        )
        return self._loss_sums.clone()

    def _weighted_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """labels: int64 [M, 2], all of them and those of [MASK]."""
        loss = self._loss(logits, labels[:, 0])
        mask_loss = self._loss(logits.detach(), labels[:, 1])
        self._loss_sums += torch.stack([loss.detach(), mask_loss]).double()
        return loss * self._weight

    def _schedule(self, count: int, training: bool):
        """A schedule is made for a number of micro-batches; the last one used is kept."""
        if self._built.get(training, (0,))[0] != count:
            self._built[training] = count, self._build(count)
        return self._built[training][1]

    def _build(self, count: int):
        stages = [self._stage(part, number) for part, number in zip(self.parts, self.stages, strict=True)]
        options = {"n_microbatches": count, "loss_fn": self._weighted_loss, "scale_grads": False}
        if self.schedule == "zero-bubble":
            return ScheduleInterleavedZeroBubble(stages, **options)
        if self.schedule == "interleaved":
            return ScheduleInterleaved1F1B(stages, **options)
        return Schedule1F1B(stages[0], **options)

    def _stage(self, part: ProteinBert, number: int) -> PipelineStage:
        """Shapes are given, so that nothing is run to find them out (it would draw random numbers)."""
        rows, length, places = self.shape
        dtype = next(part.parameters()).dtype
        config = part.config
        stream = torch.empty(
            rows * length // self.stream_ranks, config.hidden_size, dtype=dtype, device="meta", requires_grad=True
        )
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


def _stacked(batches: list[Batch], mask_id: int, device: torch.device) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(tokens, labels, the rest by the model's argument names) of all micro-batches, to be cut along dimension 0.

    Labels have two columns: all, and those where the model is shown [MASK].
    Boundaries are brought to one length by repeating the last one: empty proteins, which attention skips.
    """
    longest = max(len(batch.cu_seqlens) for batch in batches)
    bounds = [F.pad(b.cu_seqlens, (0, longest - len(b.cu_seqlens)), value=int(b.cu_seqlens[-1])) for b in batches]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(batch, name) for batch in batches]).to(device)

    others = {name: joined(name) for name in ("position_ids", "masked_positions")}
    labels = torch.cat([torch.stack([batch.labels, batch.labels_of_masks(mask_id)], -1) for batch in batches])
    return joined("tokens"), labels.to(device), {**others, "cu_seqlens": torch.stack(bounds).to(device)}
