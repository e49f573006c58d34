"""What a command line may say of tasks and models, known before torch is imported.

What must hold: MODEL_TYPES are those of tape.models.zoo, and FOLDERS the tasks of tape.tasks with their data sets'
folders (tests/test_commands.py).
"""

from collections.abc import Sequence

from proteinlm.errors import InputError, did_you_mean

HEADS = ("proteinlm", "tape", "attention")  # tape.models.heads
LEFT_OUT = ("unirep", "trrosetta", "bepler")  # songlab's model types that have no counterpart here
MODEL_TYPES = ("transformer", "tape_transformer", "lstm", "resnet", "onehot", "huggingface")
# Task -> the folder of its data set, and how the names of its files begin; None: it has no data of its own.
FOLDERS = {
    "secondary_structure": "secondary_structure",
    "contact_prediction": "proteinnet",
    "remote_homology": "remote_homology",
    "fluorescence": "fluorescence",
    "stability": "stability",
    "masked_language_modeling": "pfam",
    "ss_q8": "secondary_structure",
    "language_modeling": "pfam",
    "embed": None,
}


def require_model_type(name: str, known: Sequence[str]) -> None:
    """InputError for a model type that nobody has registered."""
    if name in known:
        return
    if name in LEFT_OUT:
        raise InputError(f"model type {name!r}: songlab's {name} is left out here; there are {', '.join(known)}")
    raise InputError(f"model type {name!r}: unknown{did_you_mean(name, known) or '; there are ' + ', '.join(known)}")
