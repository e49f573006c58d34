"""What predicts contacts without a language model: the distance along the chain, and which two amino acids they are.

    separation_scores(L)                    [L, L], closer pairs first: what a logistic regression on it would rank by
    table = PairTable.count(chains)         contacts of each pair of amino acids in the training chains, by band
    table.scores(sequence)                  [L, L]: log-odds of contact

Legend: L residues, A = 20 amino acids and one for the other letters.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from probe.arms import COLUMN
from probe.contacts.chains import Chain
from tape.metrics import BANDS

SEPARATIONS = {name: BANDS[name] for name in ("short", "medium", "long")}  # which together are all that is scored
LETTERS = 21
# A kind of pair is taken to have been seen so many more times, in contact as often as all pairs of its band.
PRIOR = 100.0


def separation_scores(length: int) -> np.ndarray:
    """float64 [L, L]: -|i - j|."""
    places = np.arange(length, dtype=np.float64)
    return -abs(places[:, None] - places[None, :])


def _kinds(letters: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int64 [P]: which pair of amino acids, in either order."""
    a, b = letters[first], letters[second]
    return np.minimum(a, b) * LETTERS + np.maximum(a, b)


def _letters(sequence: str) -> np.ndarray:
    return COLUMN[np.frombuffer(sequence.upper().encode("latin-1", "replace"), np.uint8)]


def _band(separation: np.ndarray) -> np.ndarray:
    """int64: the number of the band of SEPARATIONS, of separations of 6 or more."""
    starts = [low for low, _ in SEPARATIONS.values()]
    return np.searchsorted(starts, separation, side="right") - 1


@dataclass(frozen=True)
class PairTable:
    """counts, contacts float64 [bands, A * A]: pairs of residues by band and kind; chains: of how many."""

    counts: np.ndarray
    contacts: np.ndarray
    chains: int

    @classmethod
    def count(cls, chains: Iterable[Chain]) -> "PairTable":
        """Of the scored pairs of these chains."""
        size, number = len(SEPARATIONS) * LETTERS**2, 0
        counts, contacts = np.zeros(size), np.zeros(size)
        for chain in chains:
            first, second, contact = chain.pairs
            cells = _band(second - first) * LETTERS**2 + _kinds(_letters(chain.sequence), first, second)
            counts += np.bincount(cells, minlength=size)
            contacts += np.bincount(cells, contact, size)
            number += 1
        shape = (len(SEPARATIONS), LETTERS**2)
        return cls(counts.reshape(shape), contacts.reshape(shape), number)

    @property
    def log_odds(self) -> np.ndarray:
        """float64 [bands, A * A]."""
        rate = self.contacts.sum(1, keepdims=True) / np.maximum(self.counts.sum(1, keepdims=True), 1.0)
        rate = np.clip(rate, 1e-6, 1 - 1e-6)  # a band without contacts, or with nothing else
        share = (self.contacts + PRIOR * rate) / (self.counts + PRIOR)
        return np.log(share) - np.log1p(-share)

    def scores(self, sequence: str) -> np.ndarray:
        """float64 [L, L]; pairs closer than the first band have its log-odds and are not scored."""
        length, letters = len(sequence), _letters(sequence)
        first, second = np.triu_indices(length, 1)
        bands = np.maximum(_band(second - first), 0)
        scores = np.zeros((length, length))
        scores[first, second] = scores[second, first] = self.log_odds[bands, _kinds(letters, first, second)]
        return scores

    def information(self) -> dict[str, dict[str, float]]:
        """Per band: bits that the kind of pair tells about contact, and how many it would seem to tell by chance
        (degrees of freedom / (2 N ln 2))."""
        report = {}
        for name, counts, contacts in zip(SEPARATIONS, self.counts, self.contacts, strict=True):
            total, seen = counts.sum(), counts > 0
            bits = 0.0
            for part in (contacts, counts - contacts):
                expected = counts * part.sum() / max(total, 1.0)
                here = part > 0
                bits += float((part[here] * np.log2(part[here] / expected[here])).sum() / max(total, 1.0))
            by_chance = float((seen.sum() - 1) / (2 * total * np.log(2))) if total else 0.0
            report[name] = {"bits": bits, "by_chance": by_chance, "pairs": int(total)}
        return report
