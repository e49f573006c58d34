"""A command line and a YAML file read into one run's `Config`.

    config = parse_config(["--config", "pretrain/configs/debug.yaml", "--data-path", "x", "--save", "run"])

Built from the defaults of `pretrain.config.options`, then the file, then flags. YAML keys are options by name, alone or
under their section's name (`model:`, `data:`, ...); dashes and underscores are one. What cannot work is refused here.
"""

import math
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from pretrain.config.flags import read_flags
from pretrain.config.options import OPTIONS, SECTIONS, Config
from pretrain.config.validate import check, for_world, with_global_batch
from proteinlm.errors import InputError, did_you_mean
from proteinlm.untrusted.yaml_files import YamlMapping, read_yaml

# A flag drops what the file says to the contrary, so that `--bf16` works with a file that says fp16.
RIVALS = {
    "train_iters": ("train_samples", "lr_decay_samples", "lr_warmup_samples"),
    "train_samples": ("train_iters", "lr_decay_iters", "lr_warmup_iters"),
    "lr_warmup_fraction": ("lr_warmup_iters", "lr_warmup_samples"),
    "lr_warmup_iters": ("lr_warmup_fraction",),
    "lr_warmup_samples": ("lr_warmup_fraction",),
    "bf16": ("fp16",),
    "fp16": ("bf16",),
}
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse_config(
    argv: Sequence[str] | None = None,
    required: Sequence[str] = ("data_path", "save"),
    world_size: int | None = None,
    notify: Callable[[str], None] | None = None,
) -> Config:
    """The validated Config of a command line.

    required: options that must be there. world_size: also check the layout on so many processes; without it one replica
    is assumed where the global batch is not given. notify: takes each notice (default: printed).
    """
    line = read_flags(argv)
    options = read_options(line.config) if line.config else {}
    for rival in {rival for name in line.options for rival in RIVALS.get(name, ())}:
        options.pop(rival, None)
    for name, text in line.options.items():
        options[name] = convert(text, name, f"--{name.replace('_', '-')}")
    for unit in ("iters", "samples"):  # the decay is as long as the run unless its length is given
        if (length := options.get(f"train_{unit}")) and options.get(f"lr_decay_{unit}") is None:
            options[f"lr_decay_{unit}"] = length
    by_section: dict[str, dict] = {section: {} for section in SECTIONS}
    for name, value in options.items():
        by_section[OPTIONS[name][0]][name] = value
    config = Config(**{name: section(**by_section[name]) for name, section in SECTIONS.items()})
    try:
        check(config, required)
        config = with_global_batch(config) if world_size is None else for_world(config, world_size)
    except InputError as error:  # of values that may be the file's or a flag's
        if not line.config or str(line.config) in str(error):
            raise
        raise InputError(f"{error} (options of {line.config} and the flags)") from None
    for notice in line.notices:
        (notify or print)(f"notice: {notice}")
    return config


# ---- YAML


def read_options(path: str | Path) -> dict[str, object]:
    """Options by name from a YAML file. InputError names file, line, key, and the nearest right key."""
    options: dict[str, object] = {}
    lines: dict[str, int] = {}

    def read(mapping: YamlMapping, section: str | None) -> None:
        for key, value in mapping.items():
            name, where = key.replace("-", "_"), f"{path}:{mapping.lines[key]}: {key}"
            if name in lines:
                raise InputError(f"{where} is given twice, first on line {lines[name]}")
            lines[name] = mapping.lines[key]
            if name in SECTIONS and section is None:
                if value is not None and not isinstance(value, YamlMapping):
                    raise InputError(f"{where} is a section; its options go below it, indented")
                read(value or YamlMapping(), name)
                continue
            _check_key(name, section, where)
            options[name] = convert(value, name, where)

    read(read_yaml(path), None)
    return options


def _check_key(name: str, section: str | None, where: str) -> None:
    if name not in OPTIONS:
        raise InputError(f"{where} is not an option{did_you_mean(name, [*OPTIONS, *SECTIONS])}")
    if section and OPTIONS[name][0] != section:
        raise InputError(f"{where} belongs to section {OPTIONS[name][0]}, not {section}")


# ---- values


def convert(value: object, name: str, where: str) -> object:
    """`value` (text of a flag, or what YAML made of it) as the type of option `name`; `where` begins an error."""
    kind = OPTIONS[name][1].type
    if isinstance(kind, types.UnionType):  # X | None
        if str(value).lower() in ("none", "null"):
            return None
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is not tuple:
        return _scalar(value, kind, where)
    kind = typing.get_args(kind)[0]
    if isinstance(value, str):
        value = value.split() if kind is int else [value]
    return tuple(_scalar(item, kind, where) for item in (value if isinstance(value, (list, tuple)) else [value]))


def _scalar(value: object, kind: type, where: str) -> object:
    if kind is bool:
        text = str(value).lower()
        if text not in TRUE + FALSE:
            raise InputError(f"{where} is {value!r}, not true or false")
        return text in TRUE
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"{where} is {value!r}, not {'text' if kind is str else 'a number'}")
    return str(value) if kind is str else _number(value, kind, where)


def _number(value: str | float, kind: type, where: str) -> float:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise InputError(f"{where} is {value!r}, not a number") from None
    if not math.isfinite(number):
        raise InputError(f"{where} is {value}, not a finite number")
    if kind is float:
        return number
    if not number.is_integer():
        raise InputError(f"{where} is {value}, not a whole number")
    try:
        return int(value)  # exact however large
    except ValueError:  # 1e6, 500.0: as YAML and people write large whole numbers
        return int(number)
