"""ESM's contact regression fitted: 20 chains, every scored pair of residues a row, every attention map a feature.

    regression, report = fit(encoder, chains, seed=0)
    encoder.set_contacts(regression)

Rao et al. 2021 ("Transformer protein language models are unsupervised structure learners"): L1 logistic regression,
C = 0.15, liblinear; the maps symmetrised and corrected (APC), pairs 6 or more apart. What must hold: features are those
of Hugging Face's predict_contacts; coefficients are scikit-learn's; a pair with a residue that was not resolved is no
row.

Legend: L residues, P pairs, M = layers * heads maps, R rows.
"""

import inspect
import warnings
from collections.abc import Sequence

import numpy as np
import torch

from probe.contacts.chains import Chain, Chains
from probe.names import CHAINS
from proteinlm.encoder import Encoder, make_stream
from proteinlm.errors import InputError
from proteinlm.network.attention.maps import AttentionMaps
from proteinlm.network.contacts import ContactRegression, pair_features
from proteinlm.progress import Progress

STRENGTH = 0.15  # scikit-learn's C
LIBLINEAR_BYTES = 16  # of its own copy of a feature


def features(encoder: Encoder, sequence: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[P, M]: the corrected maps at the pairs (first [P], second [P]); fp32, or fp64 for weights of fp64."""
    columns: dict[int, np.ndarray] = {}
    places = [torch.from_numpy(place).to(encoder.device) for place in (first, second)]

    def reduce(maps: AttentionMaps) -> None:
        columns[maps.first] = pair_features(maps, *places).cpu().numpy()  # [n, P]

    encoder.attention_sums(reduce, make_stream([sequence], encoder.tokenizer))
    return np.concatenate([columns[number] for number in sorted(columns)]).T


def choose(available: int, number: int, seed: int) -> np.ndarray:
    """Places of the chains that a fit is made on, ascending."""
    return np.sort(np.random.default_rng(seed).choice(available, number, replace=False))


def training_rows(encoder: Encoder, chains: Sequence[Chain], quiet: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(features [R, M], bool [R]: in contact) of the scored pairs of all chains."""
    ends = np.cumsum([len(chain.pairs[0]) for chain in chains])
    rows: np.ndarray | None = None
    with Progress("chains for the fit", len(chains), quiet=quiet) as progress:
        for chain, end in zip(chains, ends, strict=True):
            first, second, _ = chain.pairs
            own = features(encoder, chain.sequence, first, second)
            rows = np.empty((int(ends[-1]), own.shape[1]), own.dtype) if rows is None else rows
            rows[end - len(own) : end] = own
            progress.add(1, len(chain.sequence))
    return rows, np.concatenate([chain.pairs[2] for chain in chains])


def logistic_regression(seed: int):
    """scikit-learn's, as ESM fitted it."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise InputError(f"--fit needs scikit-learn ({error}): pip install 'proteinlm[probe]'") from None
    # From 1.8 on a penalty is written as l1_ratio, and the argument `penalty` is on its way out.
    old = inspect.signature(LogisticRegression).parameters["penalty"].default == "l2"
    kind = {"penalty": "l1"} if old else {"l1_ratio": 1.0}
    return LogisticRegression(**kind, C=STRENGTH, solver="liblinear", random_state=seed)


def fit_rows(rows: np.ndarray, contact: np.ndarray, seed: int = 0) -> tuple[ContactRegression, bool]:
    """(the regression on features [R, M], whether liblinear converged)."""
    from sklearn.exceptions import ConvergenceWarning

    model = logistic_regression(seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(rows, contact)
    weight, bias = (torch.from_numpy(np.asarray(part, np.float64)) for part in (model.coef_, model.intercept_))
    return ContactRegression(weight, bias), not any(item.category is ConvergenceWarning for item in caught)


def fit(
    encoder: Encoder, chains: Chains, seed: int = 0, number: int = CHAINS, quiet: bool = False
) -> tuple[ContactRegression, dict]:
    """The regression on `number` chains drawn by `seed`, and what it was fitted on.

    InputError for fewer chains than that, and for chains without a contact among them.
    """
    if len(chains) < number:
        raise InputError(f"{chains.path}: {len(chains)} chains; the fit draws {number} (--proteins)")
    logistic_regression(seed)  # a missing package shows before the work
    places = choose(len(chains), number, seed)
    drawn = [chains[place] for place in places]
    pairs = sum(len(chain.pairs[0]) for chain in drawn)
    contacts = sum(int(chain.pairs[2].sum()) for chain in drawn)
    if not 0 < contacts < pairs:
        raise InputError(f"{chains.path}: {contacts} of {pairs} scored pairs in contact; a fit needs both kinds")
    rows, labels = training_rows(encoder, drawn, quiet)
    regression, converged = fit_rows(rows, labels, seed)
    report = {"seed": seed, "chains": [chain.name for chain in drawn], "pairs": pairs, "contacts": contacts}
    report |= {"maps": rows.shape[1], "maps_used": int((regression.weight != 0).sum()), "converged": converged}
    return regression, report
