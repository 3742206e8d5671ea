"""Every layer in every format and with every option, small and in double precision."""

from dataclasses import dataclass, field
from typing import Any

import torch

from tenfold.nn import Conv1d, Conv2d, Conv3d, ConvTranspose2d, Embedding, Linear

FORMATS = ["fixed-rank", "tucker", "tensor-train"]
WINDOWS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"padding": "valid", "dilation": 2, "bias": False},
    "same": {"padding": "same", "dilation": 2},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": 2, "padding_mode": "circular", "stride": 2},
    "replicate": {"padding": 1, "padding_mode": "replicate"},
}
UPWARDS = {
    "plain": {},
    "strided": {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2)},
    "dilated": {"dilation": 2, "bias": False},
}


@dataclass
class Case:
    """A layer and an input that fits it."""

    cls: type
    arguments: tuple[Any, ...]
    input: tuple[int, ...]
    """Shape of one input, without the batch; for an embedding, of the indices."""
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, **more: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return self.cls(*self.arguments, **{"rank": 2, "dtype": torch.float64, **self.options, **more})

    def data(self, *batch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        if self.cls is Embedding:
            return torch.randint(self.arguments[0], (*batch, *self.input), generator=generator)
        return torch.randn(*batch, *self.input, dtype=torch.float64, generator=generator)


CASES = {
    **{
        f"linear-{form}-{bias}": Case(Linear, (12, 10), (12,), {"format": form, "bias": bias})
        for form in FORMATS
        for bias in (True, False)
    },
    "linear-shapes": Case(Linear, (12, 10), (12,), {"format": "tensor-train", "shapes": ((5, 2), (3, 4))}),
    "linear-prime": Case(Linear, (7, 5), (7,), {"format": "tensor-train"}),
    **{
        f"conv{n}d-{form}-{name}": Case(cls, (5, 6, window), (5, *space), {"format": form, **options})
        for n, cls, window, space in [
            (1, Conv1d, 3, (9,)),
            (2, Conv2d, (3, 2), (8, 7)),
            (3, Conv3d, (3, 2, 2), (5, 6, 5)),
        ]
        for form in FORMATS
        for name, options in WINDOWS.items()
        if n == 2 or name in ("strided", "same", "circular")
    },
    **{
        f"transposed-{form}-{name}": Case(
            ConvTranspose2d, (5, 6, (3, 2)), (5, 4, 3), {"format": form, **options}
        )
        for form in FORMATS
        for name, options in UPWARDS.items()
    },
    **{
        f"{cls.__name__}-modes-{modes}": Case(cls, (5, 6, (3, 2)), (5, 8, 7), {"modes": modes})
        for cls in (Conv2d, ConvTranspose2d)
        for modes in [(0, 1, 2, 3), (0,), (1,), (2, 3), (0, 2)]
    },
    **{
        f"embedding-{form}-{padding}": Case(
            Embedding, (11, 6), (3,), {"format": form, "padding_idx": padding}
        )
        for form in ("fixed-rank", "tensor-train")
        for padding in (None, 3, -1)
    },
}
# One of each layer and format, for what does not depend on the options.
PLAIN = {
    name: case
    for name, case in CASES.items()
    if name.endswith(("-True", "-plain", "-strided", "-None"))
    and not (name.startswith(("conv2d", "transposed")) and name.endswith("-strided"))
}
