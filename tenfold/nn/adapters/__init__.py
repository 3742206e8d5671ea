"""Adapters: low-rank updates of the frozen weights of a pretrained model."""

from tenfold.nn.adapters.adapt import adapt, describe, unadapt
from tenfold.nn.adapters.checkpoint import load_adapter, save_adapter
from tenfold.nn.adapters.layer import AdaptedConv2d, AdaptedLayer, AdaptedLinear, Adapter
from tenfold.nn.adapters.lookup import adapter_names
from tenfold.nn.adapters.lora import export_lora, import_lora
from tenfold.nn.adapters.report import AdaptedWeight, AdapterReport
from tenfold.nn.adapters.switch import activate, deactivate, merge, unmerge

__all__ = [
    "AdaptedConv2d",
    "AdaptedLayer",
    "AdaptedLinear",
    "AdaptedWeight",
    "Adapter",
    "AdapterReport",
    "activate",
    "adapt",
    "adapter_names",
    "deactivate",
    "describe",
    "export_lora",
    "import_lora",
    "load_adapter",
    "merge",
    "save_adapter",
    "unadapt",
    "unmerge",
]
