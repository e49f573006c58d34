"""TAPE's tokenizer under songlab's module name; the vocabulary itself lives in proteinlm.tokenizer.

UniRep's vocabulary is left out with its model: TAPETokenizer("unirep") is an InputError.
"""

from proteinlm.tokenizer import TAPE_TOKENS, TAPETokenizer

_NAMES = "Ala Asx Cys Asp Glu Phe Gly His Ile Lys Leu Met Asn Pro Gln Arg Ser Thr Sec Val Trp Xaa Tyr Glx"
# Three-letter code -> letter, with Asx (B), Xaa (X) and Glx (Z); pyrrolysine (O) has none there.
IUPAC_CODES = dict(zip(_NAMES.split(), "ABCDEFGHIKLMNPQRSTUVWXYZ", strict=True))
IUPAC_VOCAB = {token: number for number, token in enumerate(TAPE_TOKENS)}

__all__ = ["IUPAC_CODES", "IUPAC_VOCAB", "TAPETokenizer"]
