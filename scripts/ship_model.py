"""A pretraining checkpoint to a model that comes with the project, in models/NAME.

    python -m scripts.ship_model CHECKPOINT NAME CHAINS         CHAINS: as proteinlm contacts --fit takes them

A stock directory of Hugging Face's EsmForMaskedLM in half precision; the contact regression in it and beside it, fitted
on 20 of CHAINS, none of which may be in a set that is judged; what training left of itself, in training.json; the
perplexity of 50 synthetic proteins, which later versions must find again; SHA256SUMS. There is no copy in TAPE's
format: it would hold the same numbers again, every command and class here opens ESM's, and
`python -m converter --load NAME --save DIR --target tape` makes one. The card: scripts/model_card.py.
"""

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

import proteinlm
from proteinlm import errors
from proteinlm.encoder import Encoder, make_stream
from proteinlm.errors import InputError
from proteinlm.files import atomic_directory, write_json, write_text
from proteinlm.model_dir.find import CONFIG_NAME, SAFE_NAME, SHIPPED
from proteinlm.untrusted.json_files import read_json
from tape.runs.results import file_sha256

LARGEST = 8_000_000  # bytes of the weights
EVERY = 7  # of a protein's residues, the hidden ones
SUMS, CARD, PROTEINS, STORED = "SHA256SUMS", "README.md", "perplexity.fasta", "perplexity.json"


def make(checkpoint: str, name: str, chains: str, models: Path) -> Path:
    """models/NAME, whole or not at all."""
    from converter.__main__ import main as convert
    from probe.contacts.command import main as contacts

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise InputError(f"{name}: should be letters, digits, - and _, as no path and no file is called")
    if (models / name).exists():
        raise InputError(f"{models / name}: exists already; give another name, or remove it")
    with tempfile.TemporaryDirectory() as folder:
        plain, whole, fitted = (Path(folder) / part for part in ("plain", "whole", "fitted"))
        flags = ["--target", "esm", "--dtype", "fp16", "--verify"]
        if convert(["--load", checkpoint, "--save", str(plain), *flags]):
            raise InputError(f"{checkpoint}: the converted model is not the same; nothing was made")
        flags = ["--export", str(whole), "--output", str(fitted), "--too_long", "crop", "--device", "cpu"]
        contacts([str(plain), "--fit", chains, *flags])
        if (size := (whole / SAFE_NAME).stat().st_size) > LARGEST:
            raise InputError(f"{checkpoint}: {size:,} bytes in half precision; should be at most {LARGEST:,}")
        with atomic_directory(models / name) as directory:
            shutil.copytree(whole, directory, dirs_exist_ok=True)
            shutil.copyfile(f"{fitted}.safetensors", directory / "contact_regression.safetensors")
            (directory / "conversion_report.txt").unlink()  # names paths of this machine, as config.json does
            config, source = read_json(directory / CONFIG_NAME), Path(checkpoint).resolve().name
            write_json(directory / CONFIG_NAME, config | {"converted_from": source})
            if record := training_record(Path(checkpoint)):
                write_json(directory / "training.json", record)
            store_perplexity(directory)
            write_sums(directory)
    return models / name


def training_record(checkpoint: Path) -> dict:
    """What a run of `pretrain` says of itself; {} of anything else. Paths become names."""
    latest, log = checkpoint / "latest_checkpointed_iteration.txt", checkpoint / "metrics.jsonl"
    if not latest.is_file():
        return {}
    iteration = int(latest.read_text())
    meta = read_json(checkpoint / f"iter_{iteration:07d}" / "meta.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    steps = {line["iteration"]: line for line in lines if "lm_loss" in line and line["iteration"] <= iteration}
    record = {"iteration": iteration, "seconds_of_steps": sum(line["seconds"] for line in steps.values())}
    done = [line for line in lines if line["iteration"] <= iteration]  # the last step need not have been logged
    record |= {key: max((line[key] for line in done), default=0) for key in ("consumed_tokens", "consumed_proteins")}
    return record | {"config": _without_folders(meta["config"])}


def _without_folders(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_folders(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_without_folders(own) for own in value]
    return re.sub(r"[^=\s]*/", "", value) if isinstance(value, str) else value


def synthetic_proteins() -> list[str]:
    """50 proteins of five families of the demo's world: nobody's data, and none that a model was trained on."""
    from demo.synthetic import WorldSize, build_world, sample_proteins

    world = build_world(WorldSize(folds=5, superfamilies=1, families=1), seed=0)
    family, sequences = sample_proteins(world, 10, seed=0)
    return world.text(sequences, family)


def perplexity(encoder: Encoder, proteins: Sequence[str]) -> float:
    """exp of the mean loss at every seventh residue of each protein, all of them hidden at once."""
    import torch

    stream = make_stream(proteins, encoder.tokenizer)
    pairs = zip(stream.starts, stream.ends, strict=True)
    places = np.concatenate([np.arange(start + 1 + EVERY // 2, end - 1, EVERY) for start, end in pairs])
    answers = torch.from_numpy(stream.tokens[places])
    stream.tokens[places] = encoder.tokenizer.mask_id
    logits = encoder.logits_at(stream, places).double()
    return float(torch.nn.functional.cross_entropy(logits, answers).exp())


def store_perplexity(directory: Path) -> None:
    """50 proteins and their perplexity: what says later that weights and code still agree, and nothing of quality."""
    proteins = synthetic_proteins()
    write_text(directory / PROTEINS, "".join(f">synthetic_{i}\n{p}\n" for i, p in enumerate(proteins)))
    value = perplexity(proteinlm.load(directory, device="cpu"), proteins)
    masked = f"every {EVERY}th residue, the first of them the {EVERY // 2 + 1}th, hidden at once; fp32"
    write_json(directory / STORED, {"perplexity": value, "proteins": len(proteins), "masked": masked})


def write_sums(directory: Path) -> None:
    """SHA256SUMS, for `sha256sum --check`, of every file but itself and the card, whose words may be mended."""
    names = sorted(file.name for file in directory.iterdir() if file.name not in (SUMS, CARD))
    write_text(directory / SUMS, "".join(f"{file_sha256(directory / name)}  {name}\n" for name in names))


def main(argv: Sequence[str] | None = None) -> int:
    parser = errors.ArgumentParser("scripts.ship_model", description="Make a checkpoint one of the models in models/.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="what python -m converter --load takes")
    parser.add_argument("name", metavar="NAME", help="what the model is to be called")
    parser.add_argument("chains", metavar="CHAINS", help="of known structure, for the contact regression")
    parser.add_argument("--models", type=Path, default=SHIPPED, help="where it goes (default: models/ here)")
    args = parser.parse_args(argv)
    print(f"wrote {make(args.checkpoint, args.name, args.chains, args.models)}")
    return 0


cli = partial(errors.run, main)

if __name__ == "__main__":
    sys.exit(cli())
