"""What a checkpoint of a run holds, as tensors by name: weights, Adam's moments, RNG states. No pickled objects."""

from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from pretrain.checkpoint import files as checkpoint
from pretrain.parallel.apply import seed_generators
from pretrain.parallel.mesh import Layout
from proteinlm.errors import InputError

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
# A resumed run must go on with the schedule it began with, unless a flag says which of the two counts.
SCHEDULE = (
    *("lr", "min_lr", "lr_decay_style", "lr_decay_iters", "lr_decay_samples"),
    *("lr_warmup_fraction", "lr_warmup_iters", "lr_warmup_samples"),
)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Adam's state by parameter name: {"exp_avg": {name: tensor}, ...}. Missing moments are made (zeros)."""
    state = {moment: {} for moment in MOMENTS}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        entry = optimizer.state[parameter]
        if not entry:
            entry["step"] = torch.zeros((), dtype=torch.float32, device=_step_device(parameter))
            entry["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            entry["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        for moment in MOMENTS:
            state[moment][name] = entry[moment]
    return state


def _step_device(parameter: Tensor) -> torch.device:
    return parameter.device  # fused AdamW keeps its step counter beside the parameter


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _place(world, states: dict[str, Tensor]) -> dict:
    """Under this process's name, where there are several."""
    return states if world.alone else {f"rank{world.rank:05d}": states}


def run_state(trainer) -> dict:
    """The tensors of a trainer to save, honouring --no-save-optim and --no-save-rng."""
    options = trainer.config.checkpoint
    state = {"model": dict(trainer.model.state_dict())}
    if not options.no_save_optim:
        state["optimizer"] = optimizer_state(trainer.model, trainer.optimizer)
    if not options.no_save_rng:
        state["rng"] = _place(trainer.world, rng_state(trainer.device))
    return state


def load_state(trainer) -> int | None:
    """Load `--load` into a trainer. Returns the iteration resumed from, None when it starts at iteration 0.

    With --finetune only the weights are taken. A directory without a tracker file starts afresh, with a notice.
    """
    options = trainer.config.checkpoint
    iteration = checkpoint.latest_iteration(options.load)
    if iteration is None:
        trainer.say(f"notice: {options.load} holds no checkpoint yet; starting afresh")
        return None
    iteration, meta = checkpoint.load_meta(options.load, iteration)
    _check_meta(trainer, meta, f"{options.load} iteration {iteration}")
    state = {"model": dict(trainer.model.state_dict())}
    if not (options.finetune or options.no_load_optim):
        state["optimizer"] = optimizer_state(trainer.model, trainer.optimizer)
    same_layout = meta.get("layout", asdict(Layout())) == asdict(trainer.world.layout)
    if same_layout and not (options.finetune or options.no_load_rng):
        state["rng"] = _place(trainer.world, rng_state(trainer.device))
    checkpoint.load_checkpoint(options.load, iteration, state)
    trainer.say(f"loaded {options.load} iteration {iteration}")
    if options.finetune:
        return None
    _settle_schedule(trainer, meta, f"{options.load} iteration {iteration}")
    if "rng" in state:
        states = state["rng"]
        set_rng_state(states if trainer.world.alone else next(iter(states.values())), trainer.device)
    elif not same_layout:
        trainer.say(f"notice: saved by {Layout(**meta['layout'])}, now {trainer.world.layout}: new dropout masks")
        seed_generators(trainer.config, trainer.world, iteration)
    for name, value in meta["counters"].items():
        setattr(trainer.counters, name, value)
    if trainer.scaler and meta.get("loss_scaler"):
        trainer.scaler.load_state_dict(meta["loss_scaler"])
    return iteration


def _check_meta(trainer, meta: dict, where: str) -> None:
    ours, theirs = asdict(trainer.model_config), meta["model_config"]
    shape = ("hidden_size", "num_layers", "num_attention_heads", "ffn_hidden_size", "max_position_embeddings")
    maths = ("vocab_size", "make_vocab_size_divisible_by", "hidden_act", "lm_head_act", "layernorm_epsilon")
    for name in (*shape, *maths, "final_layernorm"):
        if ours[name] != theirs[name]:
            flag = name.replace("_", "-")
            raise InputError(f"{where}: the checkpoint has {flag} {theirs[name]}, this run asks for {ours[name]}")
    if trainer.tokenizer.to_dict() != meta["tokenizer"]:
        raise InputError(f"{where}: the checkpoint was trained with another vocabulary; use its --tokenizer-type")


def _settle_schedule(trainer, meta: dict, where: str) -> None:
    """--override-lr-scheduler: ours; --use-checkpoint-lr-scheduler: the checkpoint's; neither: refused."""
    optim = trainer.config.optim
    saved = meta["config"].get("optim", {})
    differing = [name for name in SCHEDULE if name in saved and saved[name] != getattr(optim, name)]
    if not differing or optim.override_lr_scheduler:
        return
    if optim.use_checkpoint_lr_scheduler:
        settled = replace(optim, **{name: saved[name] for name in differing})
        trainer.adopt(replace(trainer.config, optim=settled))
        return
    name = differing[0]
    raise InputError(
        f"{where}: began with {name.replace('_', '-')} {saved[name]}, this run asks for {getattr(optim, name)}; "
        "say --override-lr-scheduler for the new one or --use-checkpoint-lr-scheduler for the old"
    )
