"""What share of each head's attention lands on contacts, as provis measures it.

    report = attention_on_contacts(encoder, chains, store, threshold=0.3)
    report["share"]                 float64 [layers, H]: of the weights >= 0.3, those on pairs in contact

salesforce/provis at 051fe89 (protein_attention/attention_analysis/compute_edge_features.py): attention of and to <cls>
and <sep> is left out, weights >= threshold are counted, each as one, over all pairs of residues (those closer than 6
along the chain and unresolved ones among them, which are no contacts), and a head with fewer than 100 such weights is
not judged. Beside it here: the same with every weight counting as much as it is (no threshold), both also over the
scored pairs alone, and as background the share of contacts among the pairs.

Legend: M = layers * H maps, L residues.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probe.contacts.chains import DEFINITION, Chain, Chains, in_parts
from probe.names import THRESHOLD
from proteinlm.encoder import Encoder, make_stream
from proteinlm.errors import InputError
from proteinlm.network.attention.maps import AttentionMaps
from tape.inference.parts import PartStore
from tape.metrics import IGNORE

FEWEST = 100  # weights above the threshold; provis' min_total
SUMS = ("above", "above_on_contacts", "above_scored", "mass", "mass_on_contacts", "mass_scored")


def map_sums(maps: Tensor, contact: Tensor, scored: Tensor, threshold: float) -> Tensor:
    """float64 [6, n]: SUMS of maps [n, L, L]; contact, scored bool [L, L]."""
    above, mass = (maps >= threshold).double(), maps.double()
    sums = [(part * mask).sum((1, 2)) for part in (above, mass) for mask in (torch.ones_like(contact), contact, scored)]
    return torch.stack(sums)


def sums_of(encoder: Encoder, chain: Chain, threshold: float) -> dict[str, np.ndarray]:
    """{"sums": float64 [6, M], "pairs": int64 [3] ordered pairs: all, in contact, scored} of one chain."""
    labels = torch.from_numpy(chain.labels).to(encoder.device)
    contact, scored = labels == 1, labels != IGNORE
    columns: dict[int, np.ndarray] = {}

    def reduce(maps: AttentionMaps) -> None:
        columns[maps.first] = map_sums(maps.residues, contact, scored, threshold).cpu().numpy()

    encoder.attention_sums(reduce, make_stream([chain.sequence], encoder.tokenizer))
    pairs = np.array([contact.numel(), int(contact.sum()), int(scored.sum())])
    return {"sums": np.concatenate([columns[number] for number in sorted(columns)], axis=1), "pairs": pairs}


@dataclass(frozen=True)
class HeadShares:
    """Sums over chains. sums: name of SUMS -> float64 [layers, H]; pairs: all, in contact, scored."""

    sums: dict[str, np.ndarray]
    pairs: tuple[int, int, int]
    threshold: float
    chains: int

    def ratio(self, above: str, below: str) -> np.ndarray:
        """float64 [layers, H], NaN where nothing is below."""
        top, bottom = self.sums[above], self.sums[below]
        return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)

    @property
    def share(self) -> np.ndarray:
        """provis' number; NaN for a head with fewer than FEWEST weights above the threshold."""
        return np.where(self.sums["above"] >= FEWEST, self.ratio("above_on_contacts", "above"), np.nan)

    @property
    def weighted(self) -> np.ndarray:
        """The share of attention itself."""
        return self.ratio("mass_on_contacts", "mass")

    @property
    def background(self) -> float:
        """The share of pairs that are in contact."""
        return self.pairs[1] / self.pairs[0]

    @property
    def scored_background(self) -> float:
        return self.pairs[1] / self.pairs[2]

    def report(self) -> dict:
        """For JSON; null where a head is not judged."""

        def plain(values: np.ndarray) -> list:
            return [[None if np.isnan(value) else float(value) for value in row] for row in values]

        scored = self.ratio("above_on_contacts", "above_scored")
        return {
            "contact": DEFINITION,
            "chains": self.chains,
            "threshold": self.threshold,
            "fewest_weights": FEWEST,
            "background": self.background,
            "background_scored_pairs": self.scored_background,
            "share": plain(self.share),
            "share_scored_pairs": plain(np.where(self.sums["above_scored"] >= FEWEST, scored, np.nan)),
            "weighted_share": plain(self.weighted),
            "weighted_share_scored_pairs": plain(self.ratio("mass_on_contacts", "mass_scored")),
            "weights_above": plain(self.sums["above"]),
        }


def attention_on_contacts(
    encoder: Encoder,
    chains: Chains,
    store: PartStore,
    threshold: float = THRESHOLD,
    quiet: bool = False,
    begin: int = 0,
) -> HeadShares:
    """The shares of every head over all chains. store: opened; what is done is kept there, from part `begin` on."""
    values = in_parts(store, chains, lambda chain: sums_of(encoder, chain, threshold), begin, quiet)
    pairs = values["pairs"].sum(0)
    if not pairs[1]:
        raise InputError(f"{chains.path}: none of {len(chains)} chains has a contact ({DEFINITION})")
    shape = encoder.config.num_layers, encoder.config.num_attention_heads
    totals = values["sums"].sum(0).reshape(len(SUMS), *shape)
    return HeadShares(dict(zip(SUMS, totals, strict=True)), tuple(map(int, pairs)), threshold, len(chains))
