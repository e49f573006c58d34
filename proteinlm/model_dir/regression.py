"""Contact regressions in files of their own, and put into a copy of a model directory.

    write_regression("contacts.safetensors", regression)        under ESM's names
    regression = read_regression("contacts.safetensors")        or fair-esm's esm2_t6_8M_UR50D-contact-regression.pt
    export_regression("model", regression, "model_contacts")    Hugging Face's predict_contacts runs it there

What must hold: files appear whole or not at all; of the copied directory nothing else is changed.
"""

import shutil
from pathlib import Path

import torch

from proteinlm.errors import InputError
from proteinlm.files import atomic_directory, atomic_path
from proteinlm.model_dir.contact_head import CONTACTS, contact_tensors
from proteinlm.model_dir.esm.names import ESM_CONTACTS
from proteinlm.model_dir.find import find_model
from proteinlm.model_dir.load import recognise
from proteinlm.model_dir.weights import SAFE_NAME, TORCH_NAME, WeightFiles, write_weights
from proteinlm.network.contacts import ContactRegression
from proteinlm.untrusted.safe_load import safe_torch_load
from proteinlm.untrusted.safetensors_files import open_safetensors

WHOLE = "esm."  # how the names of Hugging Face's EsmForMaskedLM begin; EsmModel's have no such prefix


def write_regression(path: str | Path, regression: ContactRegression) -> None:
    """A .safetensors file of contact_head.regression.weight [1, layers * heads] and .bias [1], fp32."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().float().cpu() for name, value in contact_tensors(regression).items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def read_regression(path: str | Path) -> ContactRegression:
    """The regression of such a file, or of fair-esm's <model>-contact-regression.pt; InputError for another file."""
    path = Path(path)
    if path.is_dir() or not path.exists():
        kind = "a directory" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {kind}; a contact regression is a .safetensors, or fair-esm's .pt")
    tensors = _tensors(path)
    names = {name: name.removeprefix(WHOLE).removeprefix(CONTACTS) for name in tensors}
    parts = {short: tensors[name] for name, short in names.items() if short in ("weight", "bias")}
    if set(parts) != {"weight", "bias"}:
        raise InputError(f"{path}: no {CONTACTS}weight and .bias in it, so no contact regression")
    weight, bias = parts["weight"], parts["bias"]
    if weight.dim() != 2 or len(weight) != 1 or bias.shape != (1,):
        shapes = f"{list(weight.shape)} and {list(bias.shape)}"
        raise InputError(f"{path}: weight and bias of shapes {shapes}; should be [1, layers * heads] and [1]")
    if not (weight.is_floating_point() and bias.is_floating_point()):
        raise InputError(
            f"{path}: weight and bias are {weight.dtype} and {bias.dtype}; should be floating-point numbers"
        )
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise InputError(f"{path}: a number of the regression is not finite")
    return ContactRegression(weight.float(), bias.float())


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        names, read = open_safetensors(path)
        return {name: read(name) for name in names}
    content = safe_torch_load(path)
    content = content.get("model", content) if isinstance(content, dict) else {}
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def check_export(model: str | Path, output: str | Path) -> str:
    """The kind of the model; InputError for one that has no place for a regression, or where `output` is."""
    source, output = find_model(model), Path(output)
    kind = recognise(source)
    if kind not in ("tape", "esm"):
        text = f"a {kind} model has no place for a contact regression; keep it as a file and give --regression FILE"
        raise InputError(f"{source}: {text}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists already; give the copy of {source} a name of its own")
    return kind


def export_regression(model: str | Path, regression: ContactRegression, output: str | Path) -> None:
    """A copy of the model (a directory, or its name) with the regression at its place: contact_head.regression of a
    TAPE-format directory, esm.contact_head.regression of Hugging Face's ESM. InputError for a form without a place."""
    source, output = find_model(model), Path(output)
    kind = check_export(source, output)
    tensors = WeightFiles(source).get_all()
    whole = kind == "esm" and any(name.startswith(WHOLE) for name in tensors)
    prefix = ESM_CONTACTS if whole else CONTACTS
    files = [file for file in source.iterdir() if file.is_file() and not file.name.startswith((SAFE_NAME, TORCH_NAME))]
    weights = ".safetensors", ".bin"  # parts of a model in several files
    with atomic_directory(output) as temporary:
        write_weights(temporary, tensors | contact_tensors(regression, prefix))
        for file in files:
            if file.suffix not in weights:
                shutil.copyfile(file, temporary / file.name)
