"""The tasks by their command-line name. A new task is a file beside these and a line here, or a plugin.

The commands ask tape.registry.resolve_task, which also knows the baselines' models and the plugins.
"""

from tape.tasks import (
    contact_prediction,
    embed,
    language_modeling,
    masked_language_modeling,
    protein_values,
    remote_homology,
    secondary_structure,
)
from tape.tasks.base import Prediction, Task

TASKS: dict[str, Task] = {
    "secondary_structure": secondary_structure.TASK,
    "contact_prediction": contact_prediction.TASK,
    "remote_homology": remote_homology.TASK,
    "fluorescence": protein_values.FLUORESCENCE,
    "stability": protein_values.STABILITY,
    "masked_language_modeling": masked_language_modeling.TASK,
}
# TAPE's other names: 8 states need ss8 in the files, language_modeling a model that reads in one direction at a time,
# and embed is not trained.
MORE_TASKS: dict[str, Task] = {
    "ss_q8": secondary_structure.TASK_Q8,
    "language_modeling": language_modeling.TASK,
    "embed": embed.TASK,
}

__all__ = ["MORE_TASKS", "TASKS", "Prediction", "Task"]
