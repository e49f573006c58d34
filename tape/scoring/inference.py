"""The predictions of a whole split, on one device or shared among processes.

What must hold: a protein's batch depends on the split and the batch size alone, never on how many processes there are,
so one process and several give the same numbers; every protein is predicted once.
"""

import math

import torch

from tape.data.batching import eval_batches
from tape.data.splits import SplitData, batches, to_device
from tape.runs.processes import World
from tape.tasks import Prediction, Task


@torch.no_grad()
def predict(
    task: Task,
    model: torch.nn.Module,
    data: SplitData,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    num_workers: int = 0,
    world: World | None = None,
) -> tuple[list[Prediction], float]:
    """(one Prediction a protein in the split's order, mean loss) of a whole split, in eval mode.

    In a world of several, each process computes its share of the batches; rank 0 gets every Prediction and the others
    an empty list. The loss is the same on all.
    """
    world = world or World()
    was_training = model.training
    model.eval()
    plan = [(0, indices) for indices in eval_batches(data.lengths, batch_size)]
    mine = [plan[place] for place in world.share(len(plan))]
    found: dict[int, Prediction] = {}
    losses: list[tuple[float, int]] = []
    for (_, indices), batch in zip(mine, batches(data, mine, num_workers), strict=True):
        batch = to_device(batch, device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = task.forward(model, batch)
        loss, number = task.loss(logits.float(), batch)
        losses.append((float(loss), int(number)))
        found.update(zip(indices.tolist(), task.predictions(logits.float(), batch), strict=True))
    model.train(was_training)
    return _in_order(found, world), _mean_loss(losses, len(plan), world)


def _in_order(found: dict[int, Prediction], world: World) -> list[Prediction]:
    """Index -> Prediction of every process as one list, on rank 0."""
    shares = world.gather(found)
    if shares is None:
        return []
    whole = {index: prediction for share in shares for index, prediction in share.items()}
    return [whole[index] for index in sorted(whole)]


def _mean_loss(losses: list[tuple[float, int]], num_batches: int, world: World) -> float:
    """Batches' sums, added up in the order of the batches whoever computed them."""
    shares = world.all_gather(losses)
    total, count = 0.0, 0
    for place in range(num_batches):
        loss, number = shares[place % world.size][place // world.size]
        total, count = total + loss, count + number
    return total / count if count else math.nan
