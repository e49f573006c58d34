"""Which directory a pretrained model's name means: songlab's code asks for "bert-base", and nothing is downloaded here.

    export TAPE_MODELS=/data/tape_models            holds bert-base/config.json, bert-base/pytorch_model.bin
    ProteinBertModel.from_pretrained("bert-base")

What must hold: a directory of that very path comes first; then $TAPE_MODELS/<name>; then ~/.cache/tape/<name>. This is
the one place of the package, beside the commands' entry points, that reads the environment.
"""

import os
from pathlib import Path

from proteinlm.errors import InputError

# songlab's names of models that have no counterpart here; trRosetta's five are xaa ... xae.
LEFT_OUT = dict.fromkeys(("babbler-1900", "unirep"), "UniRep")
LEFT_OUT |= dict.fromkeys(("trrosetta", "xaa", "xab", "xac", "xad", "xae"), "trRosetta")


def find_model(name: str | Path) -> Path:
    """The directory of a model: a path, or a name such as "bert-base" below $TAPE_MODELS or ~/.cache/tape.

    InputError if there is none, with the place where it should be.
    """
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"model {name!r}: should be the path of a model directory, or its name")
    path = Path(name)
    if path.exists():
        return path
    if str(name) in LEFT_OUT:
        raise InputError(f"{name}: songlab's {LEFT_OUT[str(name)]} model is left out here")
    if len(path.parts) != 1 or path.suffix:
        raise InputError(f"{path}: no such directory; a TAPE model directory holds config.json and model.safetensors")
    models_dir = os.environ.get("TAPE_MODELS")
    places = [Path(models_dir) / name] if models_dir else []
    places.append(Path.home() / ".cache" / "tape" / name)
    for place in places:
        if place.is_dir():
            return place
    hint = "" if models_dir else ", or set TAPE_MODELS to the directory that holds it"
    raise InputError(
        f"{name}: no such directory; a model of that name should be at {places[0]} (config.json and its weights){hint}"
    )
