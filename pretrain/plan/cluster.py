"""The machine that a run is planned for: GPUs, memory, links, and how fast they are in practice.

Data sheets say what a GPU could do at most. `Rates` says what it does: from a calibration file where there is one (its
schema is in docs/formats.md), else usual shares of the data sheet, with a wide error.
"""

import math
from dataclasses import dataclass, field

from pretrain.gpus import GPUS, Gpu, find_gpu
from proteinlm.errors import InputError, did_you_mean
from proteinlm.untrusted.json_files import read_json

DATASHEET_ERROR = 0.25
KEYS = {
    "gpu",
    "gemm_tflops",
    "hbm_gbs",
    "attention_tflops",
    "compiled_bytes",
    "launch_us",
    "links",
    "error",
    "measured",
}


@dataclass(frozen=True)
class Link:
    """seconds a message takes at least, and for each further rank of a ring; bytes/s in one direction."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Rates:
    """half, single: the largest FLOP/s of matrix products, of products with `knee` in their smallest dimension half as
    much. gemm: measured (m, n, k, FLOP/s) of half precision, which go before. attention: FLOP/s of the flash kernel,
    forward and backward. hbm: bytes/s of everything else, and compiled: the share of those bytes that fused kernels
    still move. launch: seconds of the host for a kernel. error: of a step's time.
    """

    half: float
    single: float
    attention: tuple[float, float]
    hbm: float
    node: Link
    network: Link
    knee: float = 128
    compiled: float = 0.5
    launch: float = 6e-6
    gemm: tuple[tuple[float, float, float, float], ...] = ()
    error: float = DATASHEET_ERROR

    def product(self, flops: float, sizes: tuple[float, float, float], half: bool) -> float:
        """Seconds of matrix products [m, k] x [k, n] of so many FLOPs in all."""
        if half and self.gemm:
            return flops / min(self.gemm, key=lambda row: _distance(row, sizes))[3]
        return flops / ((self.half if half else self.single) * min(sizes) / (min(sizes) + self.knee))


def _distance(row: tuple[float, ...], sizes: tuple[float, ...]) -> float:
    return sum(math.log(a / b) ** 2 for a, b in zip(sorted(row[:3]), sorted(sizes), strict=True))


def usual_rates(gpu: Gpu, network: float) -> Rates:
    """Shares of the data sheet that large trainings report: 0.72 of the tensor cores, 0.8 of HBM and of links; flash
    attention on proteins, a quarter and a sixth of the tensor cores."""
    return Rates(
        half=0.72 * gpu.half,
        single=0.8 * gpu.single,
        attention=(gpu.half / 4, gpu.half / 6),
        hbm=0.8e9 * gpu.hbm,
        node=Link(3e-6, 0.8e9 * gpu.link),
        network=Link(8e-6, 0.8e9 * network),
    )


@dataclass(frozen=True)
class Cluster:
    """memory: GB (1e9 bytes) of a GPU. price: of a GPU for an hour, in whatever currency; None if not told."""

    name: str
    gpu: Gpu
    gpus_per_node: int
    nodes: int
    memory: float
    rates: Rates = field(repr=False)
    price: float | None = None
    calibrated_by: str | None = None

    @property
    def size(self) -> int:
        return self.gpus_per_node * self.nodes


def make_cluster(
    name: str,
    gpus_per_node: int,
    nodes: int,
    memory: float | None = None,
    network: float | None = None,
    price: float | None = None,
    calibration: str | None = None,
) -> Cluster:
    """InputError for a GPU without a data sheet here and for a calibration of another GPU."""
    gpu = find_gpu(name)
    if gpu is None:
        raise InputError(f"--gpu {name} is not one of {', '.join(GPUS)}{did_you_mean(name, list(GPUS))}")
    rates = usual_rates(gpu, network or gpu.network)
    if calibration:
        rates = _calibrated(rates, calibration, gpu, name)
    return Cluster(name, gpu, gpus_per_node, nodes, memory or gpu.memory, rates, price, calibration)


def _calibrated(rates: Rates, path: str, gpu: Gpu, name: str) -> Rates:
    values = read_json(path)
    if unknown := sorted(set(values) - KEYS):
        raise InputError(f"{path}: {unknown[0]} is not a key of a calibration{did_you_mean(unknown[0], list(KEYS))}")
    if find_gpu(str(values.get("gpu", ""))) is not gpu:
        raise InputError(f"{path}: measured on {values.get('gpu')!r}, but --gpu is {name}")
    try:
        return _replaced(rates, values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a calibration as docs/formats.md describes it ({error!r})") from None


def _replaced(rates: Rates, values: dict) -> Rates:
    changes: dict[str, object] = {"error": _positive(values["error"])}
    if changes["error"] >= 1:
        raise ValueError(f"error {changes['error']} must be a share of a step's time, below 1")
    rows = [
        (*(_positive(row[side]) for side in "mnk"), 1e12 * _positive(row["tflops"])) for row in values["gemm_tflops"]
    ]
    if not rows:
        raise ValueError("gemm_tflops needs a row")
    changes["gemm"] = tuple(rows)
    if "hbm_gbs" in values:
        changes["hbm"] = 1e9 * _positive(values["hbm_gbs"])
    if attention := values.get("attention_tflops"):
        changes["attention"] = 1e12 * _positive(attention["forward"]), 1e12 * _positive(attention["backward"])
    if "compiled_bytes" in values:
        changes["compiled"] = _positive(values["compiled_bytes"])
    if "launch_us" in values:
        changes["launch"] = 1e-6 * _positive(values["launch_us"])
    for place, link in values.get("links", {}).items():
        if place not in ("node", "network"):
            raise ValueError(f"links are node and network, not {place}")
        changes[place] = Link(1e-6 * _positive(link["latency_us"]), 1e9 * _positive(link["gbs"]))
    return Rates(**{**vars(rates), **changes})


def _positive(value: object) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{value} must be a number above 0")
    return number
