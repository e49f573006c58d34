"""What each family of encoders needs around its proteins: one line of FAMILIES a family, as its authors' pages say it.

    family = find_family("t5", vocabulary)          ProtT5, ProstT5, Ankh3 or Ankh, by the tokens that they have

The tokens at a protein's ends are no part of the table: they are what the directory's own tokenizer adds
(proteinlm.huggingface.tokens), and so is the id of each letter.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """model_type: transformers' name. marker: a token that tells families of one model type apart.

    replaced: letters that the authors replace before tokenizing, by X or (stand_in "unknown") the unknown token; such a
    letter was hardly seen in training. prefix: a token put before the protein. joined: the authors write a protein as
    one word; the others put spaces between letters, or give a list of them. lm_head: the modules of transformers'
    ...ForMaskedLM that make logits of states, in order; () where a family has none.
    """

    name: str
    model_type: str = ""
    marker: str = ""
    replaced: str = ""
    stand_in: str = "X"
    prefix: str = ""
    joined: bool = False
    lm_head: tuple[str, ...] = ()


# ProtTrans: the notebooks of its repository (Embedding/PyTorch/Advanced). ProstT5, Ankh, Ankh3, ESM C: their READMEs.
FAMILIES = (
    Family("ProtBert", "bert", replaced="UZOB", lm_head=("cls",)),
    Family("ProtAlbert", "albert", replaced="UZOB", lm_head=("predictions",)),
    Family("ProtElectra", "electra", replaced="UZOB", lm_head=("generator_predictions", "generator_lm_head")),
    Family("ProtXLNet", "xlnet", replaced="UZOBX", stand_in="unknown"),
    Family("ProstT5", "t5", "<AA2fold>", replaced="UZOB", prefix="<AA2fold>"),
    Family("Ankh3", "t5", "[NLU]", prefix="[NLU]", joined=True),
    Family("ProtT5", "t5", "▁A", replaced="UZOB"),
    Family("Ankh", "t5"),
    Family("ESM C", "esmc", joined=True, lm_head=("lm_head",)),
)
OTHER = Family("another encoder", joined=True, lm_head=("lm_head",))


def find_family(model_type: str, vocabulary: Mapping[str, int]) -> Family:
    """The first line of FAMILIES that fits, or OTHER. vocabulary: of the tokenizer, token -> id."""
    candidates = (family for family in FAMILIES if family.model_type == model_type)
    return next((family for family in candidates if not family.marker or family.marker in vocabulary), OTHER)
