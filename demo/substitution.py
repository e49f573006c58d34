"""Which residue replaces which, and which residue likes what: the published tables behind the synthetic world.

WAG: S. Whelan and N. Goldman, Mol. Biol. Evol. 18:691-699 (2001): exchangeabilities S (symmetric) and frequencies
pi of a reversible Markov process, Q[a, b] = S[a, b] * pi[b] for a != b, scaled to one expected substitution per
unit of time. Helix, strand and turn propensities: P. Y. Chou and G. D. Fasman, Adv. Enzymol. 47:45-148 (1978).
Hydropathy: J. Kyte and R. F. Doolittle, J. Mol. Biol. 157:105-132 (1982). Volumes (cubic Angstrom): A. A. Zamyatnin,
Prog. Biophys. Mol. Biol. 24:107-123 (1972). Everything here is indexed by `RESIDUES`, WAG's usual order.
"""

import numpy as np

RESIDUES = "ARNDCQEGHILKMFPSTWYV"
HELIX, STRAND, COIL = 0, 1, 2

_WAG_LOWER = """
0.551571
0.509848 0.635346
0.738998 0.147304 5.429420
1.027040 0.528191 0.265256 0.0302949
0.908598 3.035500 1.543640 0.616783 0.0988179
1.582850 0.439157 0.947198 6.174160 0.021352 5.469470
1.416720 0.584665 1.125560 0.865584 0.306674 0.330052 0.567717
0.316954 2.137150 3.956290 0.930676 0.248972 4.294110 0.570025 0.249410
0.193335 0.186979 0.554236 0.039437 0.170135 0.113917 0.127395 0.0304501 0.138190
0.397915 0.497671 0.131528 0.0848047 0.384287 0.869489 0.154263 0.0613037 0.499462 3.170970
0.906265 5.351420 3.012010 0.479855 0.0740339 3.894900 2.584430 0.373558 0.890432 0.323832 0.257555
0.893496 0.683162 0.198221 0.103754 0.390482 1.545260 0.315124 0.174100 0.404141 4.257460 4.854020 0.934276
0.210494 0.102711 0.0961621 0.0467304 0.398020 0.0999208 0.0811339 0.049931 0.679371 1.059470 2.115170 0.088836
1.190630 1.438550 0.679489 0.195081 0.423984 0.109404 0.933372 0.682355 0.243570 0.696198 0.0999288 0.415844
0.556896 0.171329 0.161444
3.370790 1.224190 3.974230 1.071760 1.407660 1.028870 0.704939 1.341820 0.740169 0.319440 0.344739 0.967130 0.493905
0.545931 1.613280
2.121110 0.554413 2.030060 0.374866 0.512984 0.857928 0.822765 0.225833 0.473307 1.458160 0.326622 1.386980 1.516120
0.171903 0.795384 4.378020
0.113133 1.163920 0.0719167 0.129767 0.717070 0.215737 0.156557 0.336983 0.262569 0.212483 0.665309 0.137505 0.515706
1.529640 0.139405 0.523742 0.110864
0.240735 0.381533 1.086000 0.325711 0.543833 0.227710 0.196303 0.103604 3.873440 0.420170 0.398618 0.133264 0.428437
6.454280 0.216046 0.786993 0.291148 2.485390
2.006010 0.251849 0.196246 0.152335 1.002140 0.301281 0.588731 0.187247 0.118358 7.821300 1.800340 0.305434 2.058450
0.649892 0.314887 0.232739 1.388230 0.365369 0.314730
"""
_WAG_FREQUENCIES = """
0.0866279 0.043972 0.0390894 0.0570451 0.0193078 0.0367281 0.0580589 0.0832518 0.0244313 0.048466
0.086209 0.0620286 0.0195027 0.0384319 0.0457631 0.0695179 0.0610127 0.0143859 0.0352742 0.0708956
"""
#                          A    R    N    D    C    Q    E    G    H    I    L    K    M    F    P    S    T    W
#  Y    V
_HELIX_PROPENSITY = (
    "1.42 0.98 0.67 1.01 0.70 1.11 1.51 0.57 1.00 1.08 1.21 1.16 1.45 1.13 0.57 0.77 0.83 1.08 0.69 1.06"
)
_STRAND_PROPENSITY = (
    "0.83 0.93 0.89 0.54 1.19 1.10 0.37 0.75 0.87 1.60 1.30 0.74 1.05 1.38 0.55 0.75 1.19 1.37 1.47 1.70"
)
_TURN_PROPENSITY = "0.66 0.95 1.56 1.46 1.19 0.98 0.74 1.56 0.95 0.47 0.59 1.01 0.60 0.60 1.52 1.43 0.96 0.96 1.14 0.50"
_HYDROPATHY = "1.8 -4.5 -3.5 -3.5 2.5 -3.5 -3.5 -0.4 -3.2 4.5 3.8 -3.9 1.9 2.8 -1.6 -0.8 -0.7 -0.9 -1.3 4.2"
_VOLUME = """
88.6 173.4 114.1 111.1 108.5 143.8 138.4 60.1 153.2
166.7 166.7 168.6 162.9 189.9 112.7 89.0 116.1 227.8 193.6 140.0
"""
_CHARGE = "0 1 0 -1 0 0 -1 0 0 0 0 1 0 0 0 0 0 0 0 0"


def _numbers(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=np.float64)


def wag() -> tuple[np.ndarray, np.ndarray]:
    """WAG's exchangeabilities [20, 20] (symmetric, zero diagonal) and frequencies [20] (summing to 1)."""
    exchange = np.zeros((20, 20))
    exchange[np.tril_indices(20, -1)] = _numbers(_WAG_LOWER)
    frequencies = _numbers(_WAG_FREQUENCIES)
    return exchange + exchange.T, frequencies / frequencies.sum()


def rate_matrix() -> np.ndarray:
    """WAG's rates Q [20, 20]: rows sum to 0, pi Q = 0, one expected substitution per site and unit of time."""
    exchange, frequencies = wag()
    rates = exchange * frequencies
    np.fill_diagonal(rates, -rates.sum(axis=1))
    return rates / -(frequencies @ np.diag(rates))


def proposal_matrix() -> tuple[np.ndarray, float]:
    """WAG as a jump chain (uniformisation): transition probabilities [20, 20] and jumps per unit of time.

    exp(Q t) equals a Poisson(rate * t) number of these jumps, self-jumps included; the chain keeps WAG's detailed
    balance.
    """
    rates = rate_matrix()
    jump_rate = -np.diag(rates).min()
    return np.eye(20) + rates / jump_rate, float(jump_rate)


def secondary_structure_preference() -> np.ndarray:
    """[3, 20]: log propensity of each residue in helix, strand and coil (turn propensities stand for coil)."""
    return np.log(np.stack([_numbers(t) for t in (_HELIX_PROPENSITY, _STRAND_PROPENSITY, _TURN_PROPENSITY)]))


def hydrophobicity() -> np.ndarray:
    """[20]: Kyte-Doolittle hydropathy, standardised to mean 0 and standard deviation 1 over the 20 residues."""
    values = _numbers(_HYDROPATHY)
    return (values - values.mean()) / values.std()


def pair_preference() -> np.ndarray:
    """[20, 20], symmetric, in nats before weighting: how well two residues in contact suit each other.

    Opposite charges attract and equal ones repel; hydrophobic residues like each other; and the two volumes
    together fill a fixed space (a large residue wants a small partner). Each row's mean is removed on both sides,
    so that the table says what a pair adds beyond what either residue likes alone: the part that shows as
    co-mutation.
    """
    charge, volume, hydro = _numbers(_CHARGE), _numbers(_VOLUME), hydrophobicity()
    size = (volume - volume.mean()) / volume.std()
    table = -1.5 * np.outer(charge, charge) + 0.5 * np.outer(hydro, hydro) - 0.5 * np.outer(size, size)
    return table - table.mean(axis=0) - table.mean(axis=1)[:, None] + table.mean()
