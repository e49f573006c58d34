"""What a command line may say of tasks and models, known before torch is imported.

What must hold: MODEL_TYPES are those of tape.models.zoo, and FOLDERS the tasks of tape.tasks with their data sets'
folders (tests/test_commands.py).
"""

HEADS = ("proteinlm", "tape", "attention")  # tape.models.heads
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
