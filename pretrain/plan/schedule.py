"""A pipeline's schedule as time: who does what when, how long a step takes, how many micro-batches are in flight.

The orders are those of the schedules that train (`pretrain.parallel.pipeline`).
"""

from functools import cache
from types import SimpleNamespace

from torch.distributed.pipelining.schedules import ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble

KINDS = {"interleaved": ScheduleInterleaved1F1B, "zero-bubble": ScheduleInterleavedZeroBubble}
# (stage, what, micro-batch): F forward, B backward, I and W its two halves, for inputs and for weights
Action = tuple[int, str, int]


@cache
def orders(schedule: str, pp: int, pieces: int, micro_batches: int) -> tuple[tuple[Action, ...], ...]:
    """What each of pp ranks, with `pieces` stages each, does in turn."""
    if schedule == "1f1b":
        return tuple(_one_forward_one_backward(pp, rank, micro_batches) for rank in range(pp))
    stages = [
        SimpleNamespace(
            group_rank=0, group_size=pp, num_stages=pp * pieces, stage_index=piece * pp, is_first=piece == 0,
            is_last=pp * pieces == 1, submod=None,
        )
        for piece in range(pieces)
    ]  # fmt: skip
    made = KINDS[schedule](stages, micro_batches, loss_fn=lambda *values: None).pipeline_order
    return tuple(
        tuple((a.stage_index, a.computation_type.value, a.microbatch_index) for a in made[rank] if a and _computes(a))
        for rank in range(pp)
    )


def _computes(action: object) -> bool:
    return action.computation_type.value in "FBIW"


def _one_forward_one_backward(pp: int, rank: int, micro_batches: int) -> tuple[Action, ...]:
    ahead = min(micro_batches, pp - rank)
    forward, backward = ([(rank, kind, number) for number in range(micro_batches)] for kind in "FB")
    pairs = zip(backward, forward[ahead:], strict=False)
    return (*forward[:ahead], *(action for pair in pairs for action in pair), *backward[micro_batches - ahead :])


def in_flight(order: tuple[Action, ...]) -> dict[int, int]:
    """Stage -> micro-batches whose activations it keeps, at the moment when the rank keeps the most in all."""
    now: dict[int, int] = {}
    most: dict[int, int] = {}
    for stage, kind, _ in order:
        now[stage] = now.get(stage, 0) + {"F": 1, "B": -1, "W": -1, "I": 0}[kind]
        if sum(now.values()) > sum(most.values()):
            most = dict(now)
    return most


def simulate(
    schedule: str, pp: int, pieces: int, micro_batches: int, forward: list[float], backward: list[float], hop: float
) -> tuple[float, float]:
    """(seconds of a step's micro-batches, the share of them that the busiest rank waits).

    forward, backward: seconds of a micro-batch by stage; hop: of a message between stages. A long step is its beginning
    and its end as simulated, and between them the busiest rank at work.
    """
    played = micro_batches
    if micro_batches > 6 * pp:  # a multiple of pp keeps the rounds of interleaved schedules whole
        played = 4 * pp + micro_batches % pp if schedule == "1f1b" else 4 * pp
    busy = [sum(forward[s] + backward[s] for s in range(rank, pp * pieces, pp)) for rank in range(pp)]
    if pp == 1:
        return micro_batches * busy[0], 0.0
    time = _play(orders(schedule, pp, pieces, played), forward, backward, hop)
    total = time + (micro_batches - played) * max(busy)
    return total, 1 - micro_batches * max(busy) / total


def _play(plan: tuple[tuple[Action, ...], ...], forward: list[float], backward: list[float], hop: float) -> float:
    last = len(forward) - 1
    seconds = {"F": forward, "B": backward, "I": [t / 2 for t in backward], "W": [t / 2 for t in backward]}
    done: dict[Action, float] = {}
    clocks, places = [0.0] * len(plan), [0] * len(plan)
    while any(place < len(order) for place, order in zip(places, plan, strict=True)):
        moved = False
        for rank, order in enumerate(plan):
            while places[rank] < len(order):
                stage, kind, number = order[places[rank]]
                before = _needs(stage, kind, number, last)
                if before and before not in done:
                    break
                ready = done[before] + hop * (before[0] != stage) if before else 0.0
                clocks[rank] = max(clocks[rank], ready) + seconds[kind][stage]
                # the gradient of its inputs is what the stage before waits for
                done[stage, "B" if kind == "I" else kind, number] = clocks[rank]
                places[rank] += 1
                moved = True
        assert moved, "the schedule waits for itself"
    return max(clocks)


def _needs(stage: int, kind: str, number: int, last: int) -> Action | None:
    if kind == "F":
        return (stage - 1, "F", number) if stage else None
    if kind == "W":
        return stage, "B", number
    return (stage, "F", number) if stage == last else (stage + 1, "B", number)
