"""Contacts of chains of large families: an encoder beside what its own corpus says without a language model.

    result, rows = evaluate_families(encoder, chains, "corpus.fasta", store, train=train, twin=twin, least=200)
    result["arms"]["coevolution_dca"]["precision_at_l_long"]["value"]

Scored is a chain's domain (probe.contacts.coevolution.families) with L its length, of every arm alike: what of the
chain no member covers is no pair, though the encoder reads the whole chain. Intervals draw families, each with its
chains. Reports count residues from 1.

What must hold: a killed run goes on at its last chain.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probe.contacts.chains import DEFINITION, Chain, Chains
from probe.contacts.coevolution.couplings import direct_couplings, mutual_information, sequence_weights
from probe.contacts.coevolution.families import Alignment, Members, align_family, choose_family, find_near
from probe.contacts.fitting import choose
from probe.contacts.floors import separation_scores
from probe.contacts.scoring import NAMES, SEPARATION, arms_of_attention, precisions, summarise
from probe.names import CHAINS, PRETRAINED
from proteinlm.encoder import Encoder
from proteinlm.errors import InputError
from proteinlm.progress import Progress
from tape.inference.parts import PartStore, pack_names, unpack_names
from tape.metrics import precision_name

MI, DCA = "coevolution_mi", "coevolution_dca"
DRAWN = (PRETRAINED, DCA, MI)  # arms whose maps are kept for the picture
HEADLINE = NAMES.index(precision_name("l", ""))  # of a chain's precisions the one in titles and tables


@dataclass(frozen=True, eq=False)
class FamilyChain:
    """One chain's row. labels: of the domain, chain[begin:end]; precisions: arm -> [S, K]; maps: arm -> float32 [l, l]
    of the domain, by the first seed."""

    name: str
    file: str
    family: str
    length: int
    begin: int
    end: int
    members: int
    neff: float
    labels: np.ndarray
    precisions: Mapping[str, np.ndarray]
    maps: Mapping[str, np.ndarray]

    def percent(self, arm: str, seeds: int | None = None) -> float:
        """P@L of an arm, the mean over the first so many seeds, or all."""
        return 100 * float(self.precisions[arm][:seeds, HEADLINE].mean())

    def report(self) -> dict:
        """For JSON."""
        values = {arm: dict(zip(NAMES, own.mean(0).tolist(), strict=True)) for arm, own in self.precisions.items()}
        own = {name: getattr(self, name) for name in ("name", "file", "family", "length", "members", "neff")}
        return own | {"first_residue": self.begin + 1, "last_residue": self.end, "precisions": values}


def unfitted(train: Chains | None, test: Chains, seeds: Sequence[int], number: int) -> list[tuple[Chains, int]]:
    """The chains of `test`, and those of `train` that no seed fits on; each once, where both are one file."""
    own, fitted = [], set()
    if train is not None:
        fitted = {int(place) for seed in seeds for place in choose(len(train), min(number, len(train)), seed)}
        own = [(train, place) for place in range(len(train)) if place not in fitted]
    if train is not None and test.path == train.path:
        return own
    return [(test, place) for place in range(len(test))] + own


def evaluate_families(
    encoder: Encoder,
    chains: Sequence[tuple[Chains, int]],
    corpus: str,
    store: PartStore,
    *,
    train: Chains | None = None,
    twin: Encoder | None = None,
    seeds: Sequence[int] = (0,),
    number: int = CHAINS,
    least: int,
    quiet: bool = False,
) -> tuple[dict, list[FamilyChain]]:
    """(the table, a row a chain of a family). store: opened.

    train, twin, seeds, number: as of probe.contacts.scoring.evaluate. InputError where no chain has `least` members of
    a family.
    """
    if not store.has(0):
        near, sizes = find_near([data.sequence(place) for data, place in chains], corpus, quiet)
        families = [choose_family(own, sizes, least) for own in near]
        counted = {name: sizes[name] for name in families if name}
        arrays = {"families": pack_names([name or "-" for name in families]), "names": pack_names(list(counted))}
        store.save(0, arrays | {"sizes": np.array(list(counted.values()), np.int64)})
    search = store.load(0)
    families = unpack_names(search["families"])
    members = Members(corpus, dict(zip(unpack_names(search["names"]), search["sizes"].tolist(), strict=True)))
    maps, _, fits, begin = arms_of_attention(encoder, store, train, twin, seeds, number, 1, quiet)
    places = [place for place, name in enumerate(families) if name != "-"]
    rows = []
    with Progress("chains", len(places), quiet=quiet) as progress:
        for part, place in enumerate(places, begin):
            data, index = chains[place]
            if not store.has(part):
                chain = data[index]
                own = align_family(chain.sequence, members[families[place]], least)
                store.save(part, {} if own is None else _measure(chain, own, maps))
            if measured := store.load(part):
                rows.append(_row(data, index, families[place], measured))
            progress.add(1)
    if not rows:
        raise InputError(f"{corpus}: none of {len(chains)} chains has {least} members of a family in it (--members)")
    values = {arm: np.stack([row.precisions[arm] for row in rows]) for arm in rows[0].precisions}
    groups = np.unique([row.family for row in rows], return_inverse=True)[1]
    sizes = {"searched_chains": len(chains), "test_chains": len(rows), "families": int(groups.max()) + 1}
    return {"contact": DEFINITION, **sizes, "fits": fits, **summarise(values, groups)}, rows


def _measure(chain: Chain, own: Alignment, attention: Mapping[str, Callable]) -> dict[str, np.ndarray]:
    """What a part keeps of a chain."""
    weights, inside = sequence_weights(own.rows), slice(own.begin, own.end)
    scores = {arm: score(chain.sequence)[:, inside, inside] for arm, score in attention.items()}
    scores[SEPARATION] = separation_scores(own.end - own.begin)[None]
    scores[MI] = mutual_information(own.rows, weights)[None]
    scores[DCA] = direct_couplings(own.rows, weights)[None]
    labels = chain.labels[inside, inside]
    arrays = {f"precisions_{arm}": np.stack([precisions(one, labels) for one in some]) for arm, some in scores.items()}
    arrays |= {f"map_{arm}": scores[arm][0].astype(np.float32) for arm in DRAWN}
    numbers = {"span": np.array([own.begin, own.end]), "members": len(own.rows) - 1, "neff": weights.sum()}
    return arrays | {name: np.asarray(value) for name, value in numbers.items()}


def _row(data: Chains, index: int, family: str, part: Mapping[str, np.ndarray]) -> FamilyChain:
    chain, (begin, end) = data[index], part["span"].tolist()
    precisions, maps = (
        {name.removeprefix(kind): value for name, value in part.items() if name.startswith(kind)}
        for kind in ("precisions_", "map_")
    )
    return FamilyChain(
        chain.name, data.path.name, family, len(chain.sequence), begin, end, int(part["members"]), float(part["neff"]),
        chain.labels[begin:end, begin:end], precisions, maps,
    )  # fmt: skip
