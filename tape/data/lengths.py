"""How long a protein a model can see, and what may happen to a longer one. Shared by data sets and FASTA files."""

from proteinlm.errors import InputError

TOO_LONG = ("error", "crop", "skip")


def residue_limit(config: object, max_length: int | None) -> int | None:
    """Residues of a protein the model may see: --max_length, or all that fit beside <cls> and <sep>; None: any number.

    A model without a table of positions (no max_position_embeddings, or null, or another position_embedding_type than
    learned_absolute) takes any length.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or getattr(config, "position_embedding_type", "learned_absolute") != "learned_absolute":
        return max_length
    if max_length is not None and max_length > positions - 2:
        raise InputError(
            f"--max_length {max_length}: the model has {positions} positions, so at most {positions - 2} residues fit"
        )
    return positions - 2 if max_length is None else max_length
