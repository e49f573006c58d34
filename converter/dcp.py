"""PortableModel <-> what `python -m pretrain` saves: a directory of PyTorch distributed checkpoints with meta.json."""

from dataclasses import asdict, replace
from pathlib import Path

from converter.formats import Format, ReadOptions, WriteOptions
from converter.model import (
    PortableModel,
    make_config,
    require_final_layernorm,
    rounded_contacts,
    with_lm_head,
    without_sharing,
)
from converter.vocabulary import to_pretraining
from pretrain.checkpoint.files import ITERATION_NAME, META, TRACKER, load_meta, read_model_tensors, save_checkpoint
from pretrain.checkpoint.state import CONTACT_HEAD, HAS_CONTACT_HEAD
from pretrain.parallel.mesh import Layout
from pretrain.replaced_tokens import GENERATOR, HEAD
from proteinlm.errors import InputError
from proteinlm.model_dir.contact_head import contact_tensors, take_contacts
from proteinlm.model_dir.vocabulary import take_rows
from proteinlm.model_dir.weights import stored_dtype
from proteinlm.network.contacts import ContactRegression
from proteinlm.tokenizer import Tokenizer

COUNTERS = ("iteration", "consumed_train_samples", "consumed_tokens", "consumed_proteins", "skipped_iterations")


def recognises_dcp(path: Path) -> bool:
    if not path.is_dir():
        return False
    saved = [path / META, *path.glob(f"iter_*/{META}"), *path.glob("iter_*/.metadata")]
    # A tracker alone will do: reading names what it points at and is missing.
    return any(file.is_file() for file in saved) or ((path / TRACKER).is_file() and not any(path.glob("*/mp_rank_*")))


def read_dcp(directory: Path, options: ReadOptions) -> PortableModel:
    """The weights of one checkpoint: the latest, or `iteration`. Optimizer and RNG state are not read."""
    iteration = options.iteration
    name = ITERATION_NAME.fullmatch(directory.name)
    if name and (directory / META).is_file():  # one checkpoint itself, not the run's directory
        directory, iteration = directory.parent, int(name[1])
    iteration, meta = load_meta(directory, iteration)
    origin = f"{directory} iteration {iteration}"
    if not isinstance(meta.get("model_config"), dict) or not isinstance(meta.get("tokenizer"), dict):
        raise InputError(f"{origin}: meta.json lacks model_config or tokenizer")
    config = make_config(meta["model_config"], f"{origin}: meta.json")
    try:
        tokenizer = Tokenizer.from_dict(meta["tokenizer"])
    except (InputError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{origin}: meta.json: {error}") from None
    if config.vocab_size != tokenizer.vocab_size:
        sizes = f"vocab_size {config.vocab_size}, its tokenizer has {tokenizer.vocab_size} tokens"
        raise InputError(f"{origin}: meta.json says {sizes}")
    stored = meta.get("counters") if isinstance(meta.get("counters"), dict) else {}
    counters = {name: stored[name] for name in COUNTERS if type(stored.get(name)) is int}
    tensors = read_model_tensors(directory, iteration)
    beside = [name for name in tensors if name.startswith((f"{GENERATOR}.", f"{HEAD}."))]
    for name in beside:
        del tensors[name]
    notes = ("the optimizer's and random generators' states were not read: only weights are converted",)
    if beside:
        notes += ("replaced-token detection's generator and head were left out: the encoder is converted",)
    head = _contact_head(directory, iteration, meta)
    model = PortableModel(config, tokenizer, tensors, origin, notes, counters, head).checked()
    if config.share_layers or config.embedding_size is not None:
        model = without_sharing(model)
    padding = config.make_vocab_size_divisible_by  # its rows are cleared, no other change
    tensors, dropped = take_rows(model.tensors, tokenizer.tokens, tokenizer, padding, origin)
    return replace(model, tensors=tensors).noted(*dropped)


def _contact_head(directory: Path, iteration: int, meta: dict) -> ContactRegression | None:
    """What the converter stored beside the weights of an ESM model."""
    if meta.get(HAS_CONTACT_HEAD) is not True:
        return None
    tensors = read_model_tensors(directory, iteration, CONTACT_HEAD)
    if set(tensors) != {"weight", "bias"}:
        names = ", ".join(sorted(tensors))[:80]
        raise InputError(f"{directory} iteration {iteration}: {CONTACT_HEAD} holds {names}; weight and bias are right")
    return take_contacts(tensors, "")


def prepare_dcp(model: PortableModel, options: WriteOptions) -> PortableModel:
    """The model as `write_dcp` stores it: on a vocabulary of pretraining (ESM's and SentencePiece stay), with an LM
    head."""
    require_final_layernorm(model, "pretraining always has")
    if model.tokenizer.one_to_one:
        model = to_pretraining(model, name=model.tokenizer.name if model.tokenizer.ends_proteins else "iupac")
    return with_lm_head(model.with_config(output_dropout=True))


def write_dcp(model: PortableModel, directory: Path, options: WriteOptions) -> None:
    """Write `iter_*` and its tracker: what `python -m pretrain --load DIRECTORY` goes on from or finetunes."""
    source = model.tensors if options.last_use else dict(model.tensors)
    tensors = {}
    for name in list(source):
        tensor = source.pop(name)
        tensors[name] = tensor.to(stored_dtype(name, tensor, options.dtype))
    iteration = model.counters.get("iteration", 0)
    meta = {
        "model_config": asdict(model.config),
        "tokenizer": model.tokenizer.to_dict(),
        "config": {},  # of the run: its schedule is not known
        "counters": dict.fromkeys(COUNTERS, 0) | dict(model.counters) | {"iteration": iteration},
        "layout": asdict(Layout()),
        "converted_from": model.origin,
    }
    state = {"model": tensors}
    if model.contact_head is not None:
        state[CONTACT_HEAD] = contact_tensors(rounded_contacts(model.contact_head, options.dtype), "")
        meta[HAS_CONTACT_HEAD] = True
    save_checkpoint(directory, iteration, state, meta)


DCP = Format("dcp", recognises_dcp, read_dcp, prepare_dcp, write_dcp, has_iterations=True)
