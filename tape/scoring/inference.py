"""A finetuned model, and its predictions of a whole split, on one device or shared among processes.

What must hold: a protein's batch depends on the split and the batch size alone, never on how many processes there are,
so one process and several give the same numbers; every protein is predicted once.
"""

import math
from pathlib import Path

import torch

from proteinlm.errors import InputError
from tape.data.batching import eval_batches
from tape.data.splits import SplitData, batches
from tape.data.users_code import calling
from tape.runs.processes import Processes
from tape.tasks import Prediction, Task
from tape.tasks.base import run_batch


def load_finetuned(task: Task, directory: Path) -> torch.nn.Module:
    """The finetuned model, its head included; a directory of another task or without a head is refused."""
    if not directory.exists():
        raise InputError(f"{directory}: no such directory; should be one that tape-train wrote")
    model = task.model.from_pretrained(directory, require_head=True, num_labels=task.num_labels)
    made_for = getattr(model.config, "finetuning_task", None)
    if made_for not in (None, task.name):
        raise InputError(f"{directory}: finetuned on {made_for}, not on {task.name}")
    return model


@torch.no_grad()
def predict(
    task: Task,
    model: torch.nn.Module,
    data: SplitData,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    num_workers: int = 0,
    processes: Processes | None = None,
) -> tuple[list[Prediction], float]:
    """(one Prediction a protein in the split's order, mean loss) of a whole split, in eval mode.

    Of several processes each computes its share of the batches; rank 0 gets every Prediction and the others an empty
    list. The loss is the same on all.
    """
    processes = processes or Processes()
    was_training = model.training
    model.eval()
    plan = [(0, indices) for indices in eval_batches(data.lengths, batch_size)]
    share = [plan[place] for place in processes.share(len(plan))]
    predictions: dict[int, Prediction] = {}
    losses: list[tuple[float, int]] = []
    for (_, indices), batch in zip(share, batches(data, share, num_workers), strict=True):
        batch = batch.to(device)
        outputs, loss, number = run_batch(task, model, batch, precision)
        losses.append((float(loss), int(number)))
        with calling(model, "forward", task.dataset):
            predictions.update(zip(indices.tolist(), task.predictions(outputs, batch), strict=True))
    model.train(was_training)
    return _in_order(predictions, processes), _mean_loss(losses, len(plan), processes)


def _in_order(predictions: dict[int, Prediction], processes: Processes) -> list[Prediction]:
    """Index -> Prediction of every process as one list, on rank 0."""
    shares = processes.gather(predictions)
    if shares is None:
        return []
    whole = {index: prediction for share in shares for index, prediction in share.items()}
    return [whole[index] for index in sorted(whole)]


def _mean_loss(losses: list[tuple[float, int]], num_batches: int, processes: Processes) -> float:
    """Batches' sums, added up in the order of the batches whoever computed them."""
    shares = processes.all_gather(losses)
    total, count = 0.0, 0
    for place in range(num_batches):
        loss, number = shares[place % processes.size][place // processes.size]
        total, count = total + loss, count + number
    return total / count if count else math.nan
