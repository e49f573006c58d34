"""Which columns of an alignment change together: what co-evolution says of contacts, with no language model.

    weights = sequence_weights(rows)                            # [N]; their sum is Neff
    mutual_information(rows, weights)                           # [L, L], corrected (APC)
    direct_couplings(rows, weights)                             # [L, L], corrected (APC)

Rows (probe.contacts.coevolution.alignment) are codes, GAP for none.

Weights: 1 / how many rows agree with a row at 80% or more of the columns, itself among them; gaps count as letters
(Morcos et al., PNAS 108, E1293, 2011).
Mutual information: over the rows without a gap in either column, 0.05 added to the count of every pair of amino acids
(Buslje et al., Bioinformatics 25, 1125, 2009); APC: Dunn, Wahl and Gloor, Bioinformatics 24, 333, 2008.
Direct couplings: mean-field DCA (Morcos et al. 2011). Couplings of 21 letters (the gap is one) are minus the inverse of
the covariances, with as much weight on a pseudocount as on the rows; their strength is the Frobenius norm in the
zero-sum gauge over the 20 amino acids (Ekeberg et al., Phys. Rev. E 87, 012707, 2013), again with APC.

Legend: N rows, L columns, Q = 21 letters, A = 20 of them amino acids.
"""

from collections.abc import Iterator

import numpy as np

from probe.contacts.coevolution.alignment import GAP

IDENTITY = 0.8
ADDED = 0.05  # to each pair of amino acids, for mutual information
PSEUDOCOUNT = 0.5  # share of it in the frequencies, for direct couplings
LETTERS = GAP + 1
BLOCK = 1 << 18  # pairs of rows compared at a time


def sequence_weights(rows: np.ndarray, identity: float = IDENTITY) -> np.ndarray:
    """float64 [N]. rows: uint8 [N, L]."""
    columns = np.ascontiguousarray(rows.T)
    number, needed = len(rows), identity * len(columns)
    step = max(1, BLOCK // number)
    close = np.zeros(number)
    for begin in range(0, number, step):
        some = columns[:, begin : begin + step]
        alike = np.zeros((some.shape[1], number), np.uint16)
        same, few = np.zeros(alike.shape, bool), np.zeros(alike.shape, np.uint8)
        for place, (own, every) in enumerate(zip(some, columns, strict=True), 1):
            np.equal(own[:, None], every, out=same)
            np.add(few, same.view(np.uint8), out=few)
            if place % 255 == 0 or place == len(columns):  # before a byte runs over
                alike += few
                few[:] = 0
        close[begin : begin + step] = (alike >= needed - 1e-9).sum(1)
    return 1 / close


def pair_counts(rows: np.ndarray, weights: np.ndarray) -> Iterator[np.ndarray]:
    """Of every column i: float64 [Q, L, Q], the weight of the rows with letter a in column i and b in column j."""
    length = rows.shape[1]
    cells = np.arange(length) * LETTERS + rows.astype(np.int64)  # [N, L]
    spread = np.repeat(weights, length)
    for column in rows.T.astype(np.int64):
        places = (column * length * LETTERS)[:, None] + cells
        counts = np.bincount(places.ravel(), spread, LETTERS * length * LETTERS)
        yield counts.reshape(LETTERS, length, LETTERS)


def corrected(scores: np.ndarray) -> np.ndarray:
    """Average product correction of symmetric scores [L, L], whose diagonal does not count: S - S_i S_j / S."""
    scores = scores.astype(np.float64)
    np.fill_diagonal(scores, 0.0)
    length, sums, total = len(scores), scores.sum(0), scores.sum()
    if total == 0:
        return scores
    scores -= np.outer(sums, sums) / total * (length / (length - 1))
    np.fill_diagonal(scores, 0.0)
    return scores


def mutual_information(rows: np.ndarray, weights: np.ndarray, added: float = ADDED, apc: bool = True) -> np.ndarray:
    """float64 [L, L] in nats before the correction."""
    scores = np.zeros((rows.shape[1],) * 2)
    for i, counts in enumerate(pair_counts(rows, weights)):
        joint = counts[:GAP, :, :GAP].transpose(1, 0, 2) + added  # [L, A, A]
        joint /= np.maximum(joint.sum((1, 2), keepdims=True), 1e-300)
        alone = joint.sum(2, keepdims=True) * joint.sum(1, keepdims=True)
        logs = np.log(joint, out=np.zeros_like(joint), where=joint > 0)
        logs -= np.log(alone, out=np.zeros_like(joint), where=joint > 0)
        scores[i] = (joint * logs).sum((1, 2))
    return corrected(scores) if apc else scores


def covariances(rows: np.ndarray, weights: np.ndarray, pseudocount: float = PSEUDOCOUNT) -> np.ndarray:
    """float64 [L A, L A] of the indicators of the amino acids; the gap follows from them."""
    length = rows.shape[1]
    shares = np.zeros((length, LETTERS))
    for letter in range(LETTERS):
        shares[:, letter] = weights @ (rows == letter)
    shares = (1 - pseudocount) * shares / weights.sum() + pseudocount / LETTERS
    matrix = np.empty((length, GAP, length, GAP))
    for i, counts in enumerate(pair_counts(rows, weights)):
        joint = (1 - pseudocount) * counts / weights.sum() + pseudocount / LETTERS**2
        joint[:, i] = np.diag(shares[i])
        matrix[i] = joint[:GAP, :, :GAP] - shares[i, :GAP, None, None] * shares[None, :, :GAP]
    return matrix.reshape(length * GAP, length * GAP)


def couplings(rows: np.ndarray, weights: np.ndarray, pseudocount: float = PSEUDOCOUNT) -> np.ndarray:
    """float64 [L, A, L, A]: mean-field couplings, those with the gap 0; a column's with itself mean nothing."""
    from scipy.linalg import lapack

    length, matrix = rows.shape[1], covariances(rows, weights, pseudocount)
    # As LAPACK sees it the array is transposed, which a symmetric matrix does not mind: no copy is made.
    factor, failed = lapack.dpotrf(matrix.T, lower=0, overwrite_a=1)
    inverse, also = lapack.dpotri(factor, lower=0, overwrite_c=1)
    if failed or also:
        raise ValueError("the covariances have no inverse; a pseudocount above 0 gives them one")
    inverse = inverse.T  # its lower triangle
    for i in range(length):  # the other triangle, a column of the alignment at a time
        here, after = slice(i * GAP, (i + 1) * GAP), slice((i + 1) * GAP, None)
        inverse[here, after] = inverse[after, here].T
        block = np.tril(inverse[here, here])
        inverse[here, here] = block + np.tril(block, -1).T
    np.negative(inverse, out=inverse)
    return inverse.reshape(length, GAP, length, GAP)


def strengths(pairs: np.ndarray) -> np.ndarray:
    """float64 [L, L]: Frobenius norms over amino acids of couplings [L, A, L, A], moved to the gauge in which those of
    a letter with all 21 of another column sum to 0."""
    norms = np.zeros((len(pairs),) * 2)
    for i, own in enumerate(pairs):  # [A, L, A]
        mean = own.sum(0) / LETTERS, own.sum(2) / LETTERS
        own = own - mean[0] - mean[1][:, :, None] + (own.sum((0, 2)) / LETTERS**2)[:, None]
        norms[i] = np.sqrt((own**2).sum((0, 2)))
    np.fill_diagonal(norms, 0.0)
    return norms


def direct_couplings(rows: np.ndarray, weights: np.ndarray, pseudocount: float = PSEUDOCOUNT) -> np.ndarray:
    """float64 [L, L]."""
    return corrected(strengths(couplings(rows, weights, pseudocount)))
