"""Published numbers, a table a source, each with why it is not the measurement beside it. Pure data.

What must hold: every number was read at its source; numbers of two heads, filters or splits are never in one table.
"""

from dataclasses import dataclass

ANKH = "README of agemagician/Ankh at 0211ff0"
PROTTRANS = "README of agemagician/ProtTrans at 27c02f0"
CB513 = "CB513, CASP12 and TS115 are filtered by each author; only columns of one source can be compared"
NOT_VALID = "measured on DeepLoc's test set; ours is another split of it (deeploc/valid.csv)"


@dataclass(frozen=True)
class Published:
    """What one source says. rows: a model each, cells as printed there ("" where it has none); why: not comparable."""

    section: str
    title: str
    source: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    why: tuple[str, ...]


def _rows(text: str) -> tuple[tuple[str, ...], ...]:
    """Lines of `model: cell cell ...`; - where there is none."""
    lines = [line.strip().split(": ") for line in text.strip().splitlines()]
    return tuple((model, *("" if cell == "-" else cell for cell in cells.split())) for model, cells in lines)


CASPS = ("CASP12", "CASP14", "TS115", "CB513")
STRUCTURE = ("model", *(f"{name} {states}" for states in ("Q3", "Q8") for name in CASPS))
PUBLISHED = (
    Published(
        "secondary_structure", "Ankh's comparison, percent", ANKH, STRUCTURE,
        _rows("""
            ESM-1b: 79.45 75.39 85.02 84.31 66.02 60.34 73.82 71.55
            ESM-2 650M: 82.43 76.97 87.22 87.18 70.50 62.10 77.68 75.89
            ESM-2 3B: 83.14 76.75 87.50 87.44 71.69 61.52 77.62 75.95
            ESM-2 15B: 83.16 76.56 87.50 87.35 71.17 61.81 77.67 75.88
            ProtT5-XL-U50: 83.34 75.09 86.82 86.64 70.47 59.71 76.91 74.81
            Ankh base: 80.81 76.67 86.92 86.94 68.85 62.33 77.08 75.83
            Ankh large: 83.59 77.48 88.22 88.48 71.69 63.17 79.10 78.45
        """),
        ("another head (ConvBERT, by that README) than the convolutions here", CB513),
    ),
    Published(
        "secondary_structure", "ProtTrans' own, percent", PROTTRANS,
        ("model", "CASP12 Q3", "TS115 Q3", "CB513 Q3", "CASP12 Q8", "TS115 Q8", "CB513 Q8"),
        _rows("""
            ProtT5-XL-U50: 81 87 86 70 77 74
            ProtBert-BFD: 76 84 83 65 73 70
            ProtBert: 75 83 81 63 72 66
            ProtAlbert: 74 82 79 62 70 65
            ProtXLNet: 73 81 78 62 69 63
            ProtElectra, discriminator: 74 81 79 62 69 65
        """),
        ("its head is cnn here; the training settings were not published and are ours", CB513,
         "models of 200 million to 3 billion parameters"),
    ),
    Published(
        "deeploc", "ProtTrans' own, percent", PROTTRANS, ("model", "Q10", "Q2"),
        _rows("""
            ProtT5-XL-U50: 81 91
            ProtBert-BFD: 74 89
            ProtBert: 74 89
            ProtAlbert: 74 88
            ProtXLNet: 68 87
            ProtElectra, discriminator: 70 86
        """),
        ("its head is fnn here; the training settings were not published and are ours", NOT_VALID),
    ),
    Published(
        "deeploc", "Light Attention, percent", f"{PROTTRANS}, after Stärk et al. 2021",
        ("model", "Q10 setDeepLoc", "Q10 setHARD"),
        _rows("ProtBert-BFD: 80 58\nProtT5-XL-U50: 86 65\nESM-1b: 83 62"),
        ("another head (light_attention, not run here)", NOT_VALID, "setHARD is a third set"),
    ),
    Published(
        "deeploc", "Ankh's comparison, percent", ANKH, ("model", "Q10"),
        _rows("""
            ESM-1b: 80.51
            ESM-2 650M: 82.08
            ESM-2 15B: 81.22
            ProtT5-XL-U50: 82.95
            Ankh large: 83.01
        """),
        ("another head (ConvBERT, by that README)", NOT_VALID),
    ),
    Published(
        "deeploc", "SaProt's comparison, percent", "README of westlake-repl/SaProt at e91e485",
        ("model", "ten locations", "membrane"),
        _rows("ESM-2 35M: 76.58 91.60\nESM-2 650M: 82.09 91.96\nSaProt 650M: 85.57 93.55"),
        ("the encoder is finetuned, not frozen", "split at 30% sequence identity, by its authors"),
    ),
    Published(
        "contacts", "ESM's recipe, long-range P@L, percent",
        "README of facebookresearch/esm, 'Comparison to related works'",
        ("model", "large valid", "CASP14", "CAMEO"),
        _rows("""
            ESM-2 8M: 15.9 9.8 15.7
            ESM-2 35M: 28.8 16.4 28.4
            ESM-2 150M: 42.2 26.8 40.1
            ESM-2 650M: 50.1 32.5 47.6
            ESM-2 3B: 52.7 34.0 49.9
            ESM-2 15B: 54.5 37.0 51.7
            ESM-1b: 41.1 24.4 39
            ESM-1v: 35.3 - -
            ESM-MSA-1b (alignments): 57.4 - -
            ProtBert-BFD: 34.1 - -
            ProtT5-XL-U50: 47.9 - -
            TAPE's BERT: 11.2 - -
            Gremlin (alignments): 39.3 - -
        """),
        ("contacts of C-beta atoms there, of C-alpha atoms here", "other chains (its large valid set has 14,842)"),
    ),
    Published(
        "contacts", "Ankh's comparison by attention scores, long range, percent", ANKH,
        ("model", "ProteinNet P@L", "ProteinNet P@L/5", "CASP14 P@L", "CASP14 P@L/5"),
        _rows("""
            ESM-1b: 25.30 42.03 7.77 15.77
            ESM-2 650M: 31.87 54.63 10.66 21.01
            ProtT5-XL-U50: 30.85 51.90 8.60 16.09
            Ankh large: 31.44 55.58 11.05 20.74
        """),
        ("its own way from attention to contacts", "other chains: its ESM-2 650M has 31.87 where ESM's table has 50.1"),
    ),
    Published(
        "variants", "Zero-shot, Spearman's rho", "ProteinGym v1.3 at bb68524, DMS_substitutions_Spearman_DMS_level.csv",
        ("model", "BLAT_ECOLX_Stiffler_2015", "GFP_AEQVI_Sarkisyan_2016"),
        _rows("""
            ESM-2 8M: 0.399 0.078
            ESM-2 35M: 0.557 0.131
            ESM-2 150M: 0.661 0.103
            ESM-2 650M: 0.731 0.108
            ESM-2 15B: 0.430 0.290
            ESM C 300M: 0.706 0.118
            ESM-1b: 0.698 0.524
            ESM-1v, five models: 0.707 0.103
            CARP 600K: 0.030 -0.014
            UniRep: 0.115 0.049
            VESPA (trained on conservation): 0.767 0.607
            site-independent (alignment): 0.466 0.649
        """),
        ("comparable where the mutants are ProteinGym's own file and the score is masked-marginals",
         "BLAT_ECOLX has 4,996 mutants there; another file of TEM-1 is another selection or another measurement",
         "gfp, TAPE's fluorescence, is a part of the 51,714 mutants; its test split has those of many mutations"),
    ),
)  # fmt: skip
