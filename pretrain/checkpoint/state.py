"""What a checkpoint of a run holds, and what it takes to go on from one.

Tensors by name (weights, Adam's moments, the generators' states; no pickled objects) and `meta.json`.

What must hold: a run goes on with the experiment that it began. Another model, vocabulary or schedule is refused, and
so is whatever makes sample n of the training data another row (--seed, --seq-length, other proteins by --data-path or
--split, another draw of them), since the samples consumed so far would mean nothing; --override-data reads on in the
new data all the same, from the same sample number, and --finetune starts a new run from the weights. --mask-prob, moved
files and what is listed in `NOTICED` may change; a notice names old and new.
"""

import math
import zlib
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.checkpoint import files as checkpoint
from pretrain.config.options import Config, Training
from pretrain.data.dataset import Dataset
from pretrain.data.groups import checksum, read_groups
from pretrain.data.sources import parse_data_path
from pretrain.data.stages import Sampling
from pretrain.interval import MEANS, Interval
from pretrain.parallel.apply import seed_generators
from pretrain.parallel.mesh import AXES, Layout, World
from proteinlm.errors import InputError
from proteinlm.muon import initial_state
from proteinlm.network.config import ModelConfig
from proteinlm.optim import SCALING, LossScaler
from proteinlm.tokenizer import Tokenizer
from proteinlm.untrusted.shapes import NUMBER, misfits

# A contact regression that the converter stored beside the weights: a part of a checkpoint, and meta.json's word of it.
CONTACT_HEAD, HAS_CONTACT_HEAD = "contact_head", "has_contact_head"
# Fields of ModelConfig in which runs of one model may differ; mask_token_id is the vocabulary's, which is compared too.
OF_TRAINING = ("hidden_dropout", "attention_dropout", "output_dropout", "init_method_std", "mask_token_id")
UNUSED_BY = {  # position_embedding_type -> fields of the other types
    "learned_absolute": ("rotary_base",),
    "rope": ("max_position_embeddings", "position_offset"),
    "none": ("max_position_embeddings", "position_offset", "rotary_base"),
}
# A resumed run must go on with the schedule it began with, unless a flag chooses between the two.
SCHEDULE = (
    *("lr", "min_lr", "lr_decay_style", "lr_decay_iters", "lr_decay_samples"),
    *("lr_warmup_fraction", "lr_warmup_iters", "lr_warmup_samples"),
)
# Options that say what sample n is: those of ORDER always, the others where they change which proteins there are.
ORDER = ("seed", "seq_length", "seq_length_rampup", "group_temperature", "group_cap")
SAMPLES = (*ORDER, "data_path", "split", "mask_prob", "mask_prob_rampup", "mask_only_samples")
# Options that may change while a run goes on, though its numbers are then others.
NOTICED = (
    *("hidden_dropout", "attention_dropout", "weight_decay", "clip_grad", "adam_beta1", "adam_beta2", "adam_eps"),
    *("muon_momentum", "global_batch_size", "fp16", "bf16", "fp32_residual_connection", "tf32"),
)


@dataclass
class Counters:
    """Where a run stands; saved with every checkpoint."""

    iteration: int = 0
    consumed_train_samples: int = 0  # packed rows: the whole state of the data order
    consumed_tokens: int = 0  # real tokens, [CLS] included, padding not
    consumed_proteins: int = 0
    skipped_iterations: int = 0
    skipped_in_a_row: int = 0  # up to now, but for fp16's search for a loss scale


# What a run takes over of META, and its config, which a converted checkpoint does not have.
SHAPE = {
    **{"model_config": dict, "tokenizer": dict, "counters": {f"{field.name}?": int for field in fields(Counters)}},
    **{"layout?": {f"{axis}?": int for axis in AXES}, "device?": str, "proteins?": dict, "interval?": dict},
    "loss_scaler?": dict.fromkeys(SCALING, NUMBER),
}
CONFIG = {"*": dict, "optim": dict, "data": {"data_path": [str]}}


@dataclass
class RunState:
    """The parts of a run that its checkpoints hold, or that say which checkpoints it can go on from."""

    config: Config
    world: World
    model: nn.Module
    tokenizer: Tokenizer
    train_data: Dataset
    optimizer: torch.optim.Optimizer
    scaler: LossScaler | None
    interval: Interval
    counters: Counters = field(default_factory=Counters)
    saved_at: int | None = None  # the newest checkpoint of this run's history
    contact_head: dict[str, Tensor] = field(default_factory=dict)  # handed on as it was loaded

    def tensors(self, optimizer: bool, rng: torch.device | None) -> dict:
        """By name, to be saved or filled. rng: the generators of this device, None for none."""
        state = {"model": dict(self.model.state_dict())}
        if self.contact_head:
            state[CONTACT_HEAD] = self.contact_head
        if optimizer:
            state["optimizer"] = optimizer_state(self.model, self.optimizer)
        if rng:  # under the process's name, where there are several
            states = rng_state(rng)
            state["rng"] = states if self.world.alone else {f"rank{self.world.rank:05d}": states}
        return state

    def meta(self) -> dict:
        """meta.json, but for the files and versions."""
        return {
            "model_config": asdict(self.config.model_config(self.tokenizer)),
            "tokenizer": self.tokenizer.to_dict(),
            "config": self.config.to_dict(),
            "proteins": self._proteins,
            "counters": asdict(self.counters),
            "interval": self.interval.means,
            "layout": asdict(self.world.layout),
            "device": self.world.device.type,
            "loss_scaler": self.scaler.state_dict() if self.scaler else None,
            "previous": self.saved_at,
            HAS_CONTACT_HEAD: bool(self.contact_head),
        }

    @cached_property
    def _proteins(self) -> dict:
        """What identifies a training set: shards may have moved or been made anew under the same name."""
        indexes, balanced = self.train_data.shards, Sampling.of(self.config.data).balance
        groups = [read_groups(index.prefix, len(index)) for index in indexes] if balanced else []
        return {
            "shards": [[len(index.documents) - 1, index.num_tokens] for index in indexes],
            "lengths": [zlib.crc32(index.lengths.view(np.uint8)) for index in indexes],  # tells their order
            "groups": [checksum(one) for one in groups],
            "train": self.train_data.num_proteins,
        }

    def load(self, say: Callable[[str], None]) -> int | None:
        """Take over `--load`. Returns the iteration resumed from, None when the run starts at iteration 0.

        With --finetune only the weights are taken. A directory without a tracker file starts afresh, with a notice.
        --use-checkpoint-lr-scheduler changes `config`.
        """
        options = self.config.checkpoint
        iteration = checkpoint.latest_iteration(options.load)
        if iteration is None:
            say(f"notice: {options.load} holds no checkpoint yet; starting afresh")
            return None
        iteration, meta = checkpoint.load_meta(options.load, iteration)
        where = f"{options.load} iteration {iteration}"
        for fault in misfits(meta, SHAPE | ({"config": CONFIG} if meta.get("config") else {})):
            raise InputError(f"{where}: {checkpoint.META}: {fault}")
        self._check_model(meta, where)
        if meta.get(HAS_CONTACT_HEAD):
            maps = self.config.model.num_layers * self.config.model.num_attention_heads
            self.contact_head = {"weight": torch.zeros(1, maps), "bias": torch.zeros(1)}
        self._check_objective(meta, where)
        if options.finetune:
            checkpoint.load_checkpoint(options.load, iteration, self.tensors(optimizer=False, rng=None))
            say(f"loaded {where}")
            return None
        if meta.get("config"):  # a converted checkpoint has none
            self._check_optimizer(meta["config"]["optim"], where)
            self._settle_schedule(meta["config"]["optim"], where)
            for notice in self._check_data(meta, where):
                say(f"notice: {notice}")
        self._fill(iteration, meta, say)
        say(f"loaded {where}")
        for name in vars(self.counters).keys() & meta["counters"].keys():
            setattr(self.counters, name, meta["counters"][name])
        means = ((name, pair) for name, pair in meta.get("interval", {}).items() if name in MEANS)
        self.interval.means |= {n: pair for n, pair in means if not any(misfits(pair, [NUMBER])) and len(pair) == 2}
        if self.scaler and meta.get("loss_scaler"):
            self.scaler.load_state_dict(meta["loss_scaler"])
        self.saved_at = iteration
        return iteration

    def _fill(self, iteration: int, meta: dict, say: Callable[[str], None]) -> None:
        """Weights, moments and generators. Generators that nothing is saved for start afresh."""
        options, device = self.config.checkpoint, self.world.device
        saved_by = Layout(**{axis: size for axis, size in meta.get("layout", {}).items() if axis in AXES})
        saved_on = meta.get("device", device.type)
        rng = None
        if not options.no_load_rng:
            if saved_by == self.world.layout:
                rng = torch.device("cpu") if saved_on == "cpu" else device
            if (saved_by, saved_on) != (self.world.layout, device.type):
                now = f"{self.world.layout} on {device.type}"
                say(f"notice: saved by {saved_by} on {saved_on}, now {now}: new dropout masks")
        state = self.tensors(not options.no_load_optim, rng)
        checkpoint.load_checkpoint(options.load, iteration, state)
        seed_generators(self.config, self.world, iteration)
        if rng:
            set_rng_state(state["rng"] if self.world.alone else next(iter(state["rng"].values())), rng)

    def _check_model(self, meta: dict, where: str) -> None:
        current = self.config.model_config(self.tokenizer)
        ignored = (*OF_TRAINING, *UNUSED_BY[current.position_embedding_type])
        compared = [field.name for field in fields(ModelConfig) if field.name not in ignored]
        saved = {name: getattr(ModelConfig, name, None) for name in compared} | meta["model_config"]  # it may be older
        for change in _changed(saved, asdict(current), compared).values():
            raise InputError(f"{where}: the checkpoint has {change}")
        if self.tokenizer.to_dict() != meta["tokenizer"]:
            raise InputError(f"{where}: the checkpoint was trained with another vocabulary; use its --tokenizer-type")

    def _check_objective(self, meta: dict, where: str) -> None:
        """Each objective has a head of its own."""
        names = "objective", "generator_size"
        current = asdict(self.config.training)
        saved = {name: getattr(Training, name) for name in names} | meta.get("config", {}).get("training", {})
        for change in _changed(saved, current, names[: 1 + (current["objective"] == "rtd")]).values():
            raise InputError(
                f"{where}: the checkpoint has {change}; "
                "`python -m converter --target dcp` makes a checkpoint of its encoder alone"
            )

    def _check_optimizer(self, saved: dict, where: str) -> None:
        """One optimizer's state is not another's."""
        saved, current = saved.get("optimizer", "adam"), self.config.optim.optimizer
        if saved != current and not self.config.checkpoint.no_load_optim:
            raise InputError(
                f"{where}: the checkpoint has the state of --optimizer {saved}, this run asks for {current}; "
                "say --no-load-optim to start its state afresh"
            )

    def _settle_schedule(self, saved: dict, where: str) -> None:
        """--override-lr-scheduler: the flags'; --use-checkpoint-lr-scheduler: the checkpoint's; else refused."""
        optim = self.config.optim
        changed = _changed(saved, asdict(optim), SCHEDULE)
        if optim.override_lr_scheduler:
            return
        if optim.use_checkpoint_lr_scheduler:
            self.config = replace(self.config, optim=replace(optim, **{name: saved[name] for name in changed}))
            return
        for change in changed.values():
            raise InputError(
                f"{where}: began with {change}; "
                "say --override-lr-scheduler for the new one or --use-checkpoint-lr-scheduler for the old"
            )

    def _check_data(self, meta: dict, where: str) -> list[str]:
        """Notices of what is not as it was; an InputError where samples are others, unless --override-data."""
        older = Config().to_dict()["data"]  # of checkpoints from before an option
        saved, current = ChainMap(*meta["config"].values(), older), ChainMap(*self.config.to_dict().values())
        changed, proteins = _changed(saved, current, SAMPLES), self._proteins
        # older checkpoints hold no lengths
        other_proteins = any(value != proteins.get(name, value) for name, value in meta.get("proteins", {}).items())
        other_proteins |= _shares(saved["data_path"]) != _shares(current["data_path"])
        if other_proteins and not changed.keys() & {"data_path", "split"}:
            changed["data_path"] = "other proteins in the files of --data-path"
        if (other_proteins or changed.keys() & set(ORDER)) and not self.config.checkpoint.override_data:
            consumed = f"the {meta['counters']['consumed_train_samples']:,} samples consumed are others there"
            raise InputError(
                f"{where} was trained with {'; '.join(changed.values())}: {consumed}; say --override-data to read on "
                "in the new data, or --finetune to start anew from these weights"
            )
        changed |= _changed(saved, current, NOTICED)
        return [f"{where} was trained with {change}" for change in changed.values()]


def _shares(data_path: Sequence[str]) -> list[float]:
    """The mixture of --data-path: only the ratio of its weights counts."""
    weights = [source.weight for source in parse_data_path(data_path)]
    return [round(weight / math.fsum(weights), 12) for weight in weights]


def _changed(saved: Mapping, current: Mapping, names: Sequence[str]) -> dict[str, str]:
    """By name, old and new value of the options that are not what they were."""

    def text(value: object) -> str:
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    return {
        name: f"{name.replace('_', '-')} {text(saved[name])}, this run asks for {text(current[name])}"
        for name in names
        if name in saved and saved[name] != current[name]
    }


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state by parameter name: {"exp_avg": {name: tensor}, ...}. What is missing is made (zeros)."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    state: dict[str, dict[str, Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                optimizer.state[parameter].update(initial_state(parameter, bool(group.get("matrices"))))
            for moment, value in optimizer.state[parameter].items():
                state.setdefault(moment, {})[names[parameter]] = value
    return state


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
