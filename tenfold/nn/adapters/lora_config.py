"""What a configuration of PEFT's LoRA says, and what of it changes the computation."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from tenfold.untrusted import values
from tenfold.untrusted.text import SMALL_FILE, parse_json, read_text

__all__ = ["read_configuration", "scale_of"]

_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "bias",
    "init_lora_weights",
}
# What says where a model came from, which layers were chosen, or how training began.
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}

_LONGEST, _REPETITIONS = 1000, 4  # of a pattern; PEFT writes names of layers there


def read_configuration(path: Path) -> dict[str, Any]:
    """A checked configuration, with defaults where it is silent."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        given = parse_json(read_text(path, SMALL_FILE))
    except ValueError as error:
        raise ValueError(f"{path} is corrupt: {error}") from error
    if not isinstance(given, dict) or given.get("peft_type") != "LORA":
        kind = given.get("peft_type") if isinstance(given, dict) else None
        raise ValueError(f"{path} describes no LoRA adapter, peft_type is {kind!r}")
    defaults = {"lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False, "r": 8}
    config = {**defaults, "rank_pattern": {}, "alpha_pattern": {}, **given}
    for key in ("rank_pattern", "alpha_pattern"):
        config[key] = config[key] or {}
    strange = {key: config[key] for key in set(config) - _READ - _WITHOUT_EFFECT if config[key]}
    if config.get("bias", "none") != "none":
        strange["bias"] = config["bias"]
    if config.get("init_lora_weights", True) not in (True, False, "gaussian", "eva", "orthogonal"):
        strange["init_lora_weights"] = config["init_lora_weights"]  # it changes the frozen weights
    if strange:
        raise ValueError(f"{path} is more than plain LoRA: {strange}")
    try:
        _NUMBERS("the configuration", config)
        if not 0 <= config["lora_dropout"] < 1:
            raise ValueError(f"lora_dropout is {config['lora_dropout']}")
        for key in (*config["rank_pattern"], *config["alpha_pattern"]):
            _check_pattern(key)
    except (ValueError, re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{path} is corrupt: {error}") from error
    return config


_NUMBERS = values.record(
    {
        "r": values.whole(1),
        **dict.fromkeys(("lora_alpha", "lora_dropout"), values.finite),
        "rank_pattern": values.mapping(values.whole(1)),
        "alpha_pattern": values.mapping(values.finite),
    },
    extra=values.anything,
)


def _check_pattern(pattern: str) -> None:
    """Refuse what is no regular expression, or may take time exponential in the length of a name."""
    if len(pattern) > _LONGEST or len(re.findall(r"[*+?{]", pattern)) > _REPETITIONS:
        raise ValueError(f"the pattern {values.brief(pattern)} is too long, or repeats too much")
    if re.search(r"\)[*+?{]", pattern):
        raise ValueError(f"the pattern {values.brief(pattern)} repeats a group")
    re.compile(pattern)


def scale_of(config: dict[str, Any], layer: str, rank: int) -> float:
    """PEFT's factor of ``B A``; ValueError where the configuration has another rank than the file."""
    wanted = _by_pattern(config["rank_pattern"], layer, config["r"])
    if wanted != rank:
        raise ValueError(f"the factors of {layer!r} have the rank {rank}, the configuration says {wanted}")
    alpha = _by_pattern(config["alpha_pattern"], layer, config["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if config["use_rslora"] else rank))


def _by_pattern(patterns: dict[str, Any], layer: str, default: Any) -> Any:
    """What the first pattern says that the end of a layer's name fits, as in PEFT."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default
