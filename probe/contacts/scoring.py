"""Precision of predicted contacts on chains of known structure, beside what it has to beat, in one table.

    result = evaluate(encoder, test, train=train, seeds=(0, 1, 2), store=PartStore("contacts.json", ...))
    result["arms"]["pretrained"]["precision_at_l5_long"]     {"value", "low", "high", ...}

Arms: `pretrained`, the encoder's maps under ESM's regression (or the one that it came with); `random`, the same
fits on the maps of the same network before training; `separation` and `residue_pairs` (probe.contacts.floors). A
protein's precisions are tape.metrics' (P@L, L/2, L/5 by separation); the table has their means over proteins, and
fits of several seeds count as one measurement. Intervals draw proteins with replacement (tape.scoring.bootstrap), the
same ones for all arms, so that what two arms share cancels in their difference.

What must hold: a killed run goes on where it was; no number depends on how it was cut into parts.

Legend: N proteins, S seeds, K precisions, M maps, L residues.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from probe.contacts.chains import DEFINITION, Chain, Chains, in_parts
from probe.contacts.fitting import choose, fit
from probe.contacts.floors import PairTable, separation_scores
from probe.names import CHAINS, PRETRAINED, RANDOM
from proteinlm.encoder import Encoder, make_stream
from proteinlm.errors import InputError
from proteinlm.network.contacts import ContactRegression, contact_logits
from proteinlm.progress import Progress
from tape import metrics
from tape.inference.parts import PartStore
from tape.scoring.bootstrap import several_intervals

SEPARATION, PAIRS = "separation", "residue_pairs"
BANDS = ("short", "medium", "long", "")
NAMES = tuple(metrics.precision_name(divisor, band) for band in BANDS for divisor in metrics.DIVISORS)
RESAMPLES = 2_000
TABLE_CHAINS = 1_000  # training chains whose pairs are counted: a table of 231 kinds x 3 bands needs no more


def logits_of(encoder: Encoder, regressions: Sequence[ContactRegression], sequence: str) -> np.ndarray:
    """[S, L, L]: log-odds of contact under each regression, from one pass over the maps."""
    weight = torch.cat([regression.weight for regression in regressions])
    bias = torch.cat([regression.bias for regression in regressions])
    model, stream = encoder.model, make_stream([sequence], encoder.tokenizer)
    (own,) = encoder.run(lambda *inputs: contact_logits(model, weight, bias, *inputs), stream)
    return own.cpu().numpy()


def precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [K]: NAMES of one protein; inf where a score is not finite."""
    table = metrics.precision_table([(scores, labels)])
    return np.array([table[name][0] for name in NAMES])


def stored_fits(
    store: PartStore, encoder: Encoder, train: Chains, seeds: Sequence[int], number: int, begin: int, quiet: bool
) -> tuple[list[ContactRegression], list[dict]]:
    """(a regression a seed, what each was fitted on); from the store's parts `begin` ... where they are made."""
    regressions, reports = [], []
    for part, seed in enumerate(seeds, begin):
        if not store.has(part):
            regression, report = fit(encoder, train, seed, number, quiet)
            values = {name: np.array(value) for name, value in report.items()}
            store.save(part, {"weight": regression.weight.numpy(), "bias": regression.bias.numpy()} | values)
        saved = store.load(part)
        regressions.append(ContactRegression(*(torch.from_numpy(saved.pop(name)) for name in ("weight", "bias"))))
        reports.append({name: value.tolist() for name, value in saved.items()})
    return regressions, reports


def count_pairs(train: Chains, quiet: bool) -> PairTable:
    """Of all training chains, or of TABLE_CHAINS of them."""
    number = min(len(train), TABLE_CHAINS)
    with Progress("chains for the pairs", number, quiet=quiet) as progress:

        def each():
            for place in choose(len(train), number, 0):
                progress.add(1)
                yield train[place]

        return PairTable.count(each())


def arms_of_attention(
    encoder: Encoder,
    store: PartStore,
    train: Chains | None,
    twin: Encoder | None,
    seeds: Sequence[int],
    number: int,
    begin: int,
    quiet: bool,
) -> tuple[dict[str, Callable[[str], np.ndarray]], list[ContactRegression], dict[str, list[dict]], int]:
    """(arm -> a sequence's log-odds [S, L, L], the encoder's regressions, what was fitted, the store's next part)."""
    if train is None:
        encoder.need_contacts()
        own = [encoder.contact_head]
        return {PRETRAINED: lambda sequence: logits_of(encoder, own, sequence)}, own, {}, begin
    maps, fits, regressions = {}, {}, {}
    for arm, network in ((PRETRAINED, encoder), (RANDOM, twin)):
        if network is not None:
            regressions[arm], fits[arm] = stored_fits(store, network, train, seeds, number, begin, quiet)
            maps[arm] = functools.partial(logits_of, network, regressions[arm])
            begin += len(seeds)
    return maps, regressions[PRETRAINED], fits, begin


def evaluate(
    encoder: Encoder,
    test: Chains,
    store: PartStore,
    *,
    train: Chains | None = None,
    twin: Encoder | None = None,
    seeds: Sequence[int] = (0,),
    number: int = CHAINS,
    quiet: bool = False,
) -> tuple[dict, list[ContactRegression]]:
    """(the table and what it is made of, the encoder's regressions). store: opened; what is done is kept there.

    train: chains for a fit a seed on `number` of them, and for the residue pairs; without, the encoder's own regression
    is scored. twin: the network with random weights, which is fitted alike.
    """
    maps, own, fits, begin = arms_of_attention(encoder, store, train, twin, seeds, number, 0, quiet)
    maps[SEPARATION] = lambda sequence: separation_scores(len(sequence))[None]
    table = None if train is None else count_pairs(train, quiet)
    if table is not None:
        maps[PAIRS] = lambda sequence: table.scores(sequence)[None]

    def work(chain: Chain) -> dict[str, np.ndarray]:
        scores = {arm: score(chain.sequence) for arm, score in maps.items()}
        return {arm: np.stack([precisions(own, chain.labels) for own in some]) for arm, some in scores.items()}

    values = in_parts(store, test, work, begin, quiet)  # [N, S, K] of each arm
    if np.isnan(values[SEPARATION]).all():
        raise InputError(f"{test.path}: no pair to score in {len(test)} chains ({DEFINITION})")
    result = {"contact": DEFINITION, "test_chains": len(test), "fits": fits, **summarise(values)}
    if table is not None:
        result["residue_pairs"] = {"chains": table.chains, "information": table.information()}
    return result, own


def summarise(values: Mapping[str, np.ndarray], groups: np.ndarray | None = None) -> dict:
    """Means over proteins with 95% intervals, and each arm against the others; values[arm] [N, S, K]. groups [N]: an
    interval draws these (numbered from 0), each with all its proteins, where proteins are alike."""
    means = {arm: own.mean(1) for arm, own in values.items()}  # a protein leaves a mean whatever the seed is
    rivals = [arm for arm in means if arm != PRETRAINED]
    known = {arm: ~np.isnan(own) for arm, own in means.items()}
    filled = {arm: np.where(known[arm], own, 0.0) for arm, own in means.items()}

    def statistics(counts: np.ndarray) -> dict[tuple[str, str], float]:
        counts = counts if groups is None else counts[groups]
        with np.errstate(invalid="ignore", divide="ignore"):
            own = {arm: (counts @ filled[arm]) / (counts @ known[arm]) for arm in means}
        gaps = {f"minus_{rival}": own[PRETRAINED] - own[rival] for rival in rivals}
        return {(arm, name): float(row[k]) for arm, row in (own | gaps).items() for k, name in enumerate(NAMES)}

    drawn = len(next(iter(means.values()))) if groups is None else int(groups.max()) + 1
    spreads = several_intervals(statistics, drawn, RESAMPLES)
    table: dict[str, dict] = {}
    for (arm, name), interval in spreads.items():
        table.setdefault(arm, {})[name] = {key: interval[key] for key in ("value", "low", "high", "resamples", "seed")}
    left = {name: int((~known[PRETRAINED][:, place]).sum()) for place, name in enumerate(NAMES)}
    by_seed = {}
    for arm, own in values.items():
        if own.shape[1] > 1:
            rows = [np.nanmean(own[:, place], axis=0) for place in range(own.shape[1])]
            by_seed[arm] = {name: [float(row[k]) for row in rows] for k, name in enumerate(NAMES)}
    arms = {arm: table[arm] for arm in means}
    differences = {arm: row for arm, row in table.items() if arm not in means}
    return {"proteins_left_out": left, "by_seed": by_seed, "arms": arms, "differences": differences}


def table_text(arms: Mapping[str, Mapping]) -> str:
    """The table for a terminal, in percent: a line a band and divisor, a column an arm."""
    words = {"l": "P@L", "l2": "P@L/2", "l5": "P@L/5"}
    ranges = {band: metrics.BANDS[band] for band in BANDS}
    lines = [f"{'':<22}" + "".join(f"  {arm:<26}" for arm in arms).rstrip()]
    for band, (low, high) in ranges.items():
        reach = f"{low}-{high}" if high else f">= {low}"
        for divisor, word in words.items():
            cells = [arm[metrics.precision_name(divisor, band)] for arm in arms.values()]
            texts = [f"{100 * c['value']:6.2f} [{100 * c['low']:.2f}, {100 * c['high']:.2f}]" for c in cells]
            title = f"{band or 'all'} {reach} {word}"
            lines.append(f"{title:<22}" + "".join(f"  {cell:<26}" for cell in texts).rstrip())
    return "\n".join(lines)
