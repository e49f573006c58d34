"""GPUs by NVIDIA's data sheets: what MFU is measured against, and what the planner starts from."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Dense rates, without sparsity. half: bf16/fp16 FLOP/s of the tensor cores (fp16 on V100); single: fp32 FLOP/s.

    memory: GB (1e9 bytes). hbm: GB/s. link: GB/s in one direction to the other GPUs of a node, NVLink or PCIe.
    network: GB/s a GPU between nodes in NVIDIA's own systems (DGX-1V, DGX A100, DGX H100/B200), else 200 Gb/s for two.
    """

    half: float
    single: float
    memory: float
    hbm: float
    link: float
    network: float


# The longest name that the device's own name contains decides. Data sheets: V100 (2020), A100 (2021), A800 and H800
# (as A100 and H100 with slower NVLink), A40 (2022), L4 and L40S (2023), H100 and H100 NVL (2023), H200 (2024), GH200
# (2023), B200 (2024, HGX, a GPU of eight).
GPUS = {
    "V100": Gpu(125e12, 15.7e12, 32, 900, 150, 12.5),
    "A100": Gpu(312e12, 19.5e12, 80, 2039, 300, 25),
    "A800": Gpu(312e12, 19.5e12, 80, 2039, 200, 25),
    "A40": Gpu(149.7e12, 37.4e12, 48, 696, 32, 12.5),
    "L40S": Gpu(362e12, 91.6e12, 48, 864, 32, 12.5),
    "L4": Gpu(121e12, 30.3e12, 24, 300, 32, 12.5),
    "H100 PCIe": Gpu(756e12, 51e12, 80, 2000, 64, 12.5),
    "H100 NVL": Gpu(835e12, 60e12, 94, 3900, 64, 12.5),
    "H100": Gpu(989e12, 67e12, 80, 3350, 450, 50),
    "H800": Gpu(989e12, 67e12, 80, 3350, 200, 50),
    "H200": Gpu(989e12, 67e12, 141, 4800, 450, 50),
    "GH200": Gpu(989e12, 67e12, 96, 4000, 450, 50),
    "H20": Gpu(148e12, 44e12, 96, 4000, 450, 50),
    "B200": Gpu(2250e12, 75e12, 180, 7700, 900, 50),
    "GB200": Gpu(2500e12, 80e12, 186, 8000, 900, 50),
    "B300": Gpu(2250e12, 75e12, 270, 7700, 900, 100),
    "GB300": Gpu(2500e12, 80e12, 279, 8000, 900, 100),
}


def find_gpu(name: str) -> Gpu | None:
    """The GPU whose key is in a name (a device's own, or a user's) as whole words: an RTX A4000 is no A40. None where
    no data sheet is here."""
    known = [key for key in GPUS if re.search(rf"(?<![a-z0-9]){key}(?![a-z0-9])", name, re.IGNORECASE)]
    return GPUS[max(known, key=len)] if known else None
