"""What happened to the layers of a model that got adapters."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AdaptedWeight", "AdapterReport"]


@dataclass(frozen=True)
class AdaptedWeight:
    """The update of one layer.

    Attributes
    ----------
    name : str
        Name of the layer in the model.
    rank : tuple of int
        Ranks of the update.
    stored, dense : int
        Numbers in the factors of the update and in the frozen weight.
    """

    name: str
    rank: tuple[int, ...]
    stored: int
    dense: int


@dataclass(frozen=True)
class AdapterReport:
    """What :func:`adapt` did, or what :func:`describe` found; its ``str`` is a table.

    Attributes
    ----------
    name : str
        Name of the adapter.
    layers : tuple of AdaptedWeight
        The layers that have it.
    left : dict
        Name and reason of each layer that could have had it.
    """

    name: str
    layers: tuple[AdaptedWeight, ...]
    left: dict[str, str]

    @property
    def stored(self) -> int:
        """Numbers in all updates."""
        return sum(layer.stored for layer in self.layers)

    @property
    def dense(self) -> int:
        """Numbers in all weights that are updated."""
        return sum(layer.dense for layer in self.layers)

    def compression(self, parameters: int | None = None) -> float:
        """The compression rate at which all updates together have a number of parameters.

        That is what :class:`~tenfold.optim.BudgetAdaptation` wants, to spend this budget on the layers that
        gain most from it; its parameter group must hold the parameters of this adapter and no other
        low-rank ones.

        Parameters
        ----------
        parameters : int or None
            Numbers in all updates, at the most; None means as many as there are.

        Returns
        -------
        float
            ``1 - parameters / dense``.

        Raises
        ------
        ValueError
            If the budget is not positive or not below the number of entries of the weights.
        """
        wanted = self.stored if parameters is None else parameters
        if not 0 < wanted < self.dense:
            raise ValueError(f"a budget must lie between 0 and the {self.dense:,} entries, got {wanted:,}")
        # Half a parameter more: the quotient is rounded.
        return 1.0 - (wanted + 0.5) / self.dense

    def __str__(self) -> str:
        rows = [["layer", "rank", "stored", "dense"]]
        for layer in self.layers:
            rank = "x".join(map(str, layer.rank))
            rows.append([layer.name, rank, f"{layer.stored:,}", f"{layer.dense:,}"])
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        widths[0] = max([widths[0], *map(len, self.left)])
        lines = [
            f"{name:<{widths[0]}}  {rank:<{widths[1]}}  {stored:>{widths[2]}}  {dense:>{widths[3]}}"
            for name, rank, stored, dense in rows
        ]
        lines += [f"{name:<{widths[0]}}  frozen: {reason}" for name, reason in self.left.items()]
        part = self.stored / self.dense if self.dense else 0.0
        return "\n".join(
            [*lines, f"adapter {self.name!r}: {self.stored:,} parameters, {part:.1%} of the weights"]
        )
