"""The tasks by their command-line name. A new task is a file beside these and a line here."""

from tape.tasks import (
    contact_prediction,
    fluorescence,
    masked_language_modeling,
    remote_homology,
    secondary_structure,
    stability,
)
from tape.tasks.base import Prediction, Task

TASKS: dict[str, Task] = {
    "secondary_structure": secondary_structure.TASK,
    "contact_prediction": contact_prediction.TASK,
    "remote_homology": remote_homology.TASK,
    "fluorescence": fluorescence.TASK,
    "stability": stability.TASK,
    "masked_language_modeling": masked_language_modeling.TASK,
}

__all__ = ["TASKS", "Prediction", "Task"]
