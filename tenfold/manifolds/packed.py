"""Tensors that are packed in one vector: the factors, what they are called and their dot product."""

from __future__ import annotations

import abc
import math
from typing import Any

import geoopt
import torch

from tenfold.linalg import vector_norm

__all__ = ["PackedManifold"]


class PackedManifold(geoopt.Manifold, metaclass=abc.ABCMeta):
    """Points and tangent vectors that consist of several tensors, as packed vectors.

    The part of :class:`LowRankManifold` that knows shapes and nothing of geometry.
    """

    ndim = 1
    reversible = False

    shape: tuple[int, ...]
    rank: Any
    factor_shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Length of a packed point: the number of stored parameters."""
        return sum(self._factor_sizes())

    @property
    def dense_size(self) -> int:
        """Number of entries of the dense tensor."""
        return math.prod(self.shape)

    @property
    def factor_names(self) -> tuple[str, ...]:
        """Names of the factors, in the order in which they are packed."""
        return tuple(f"factor{k}" for k in range(len(self.factor_shapes)))

    def _key(self) -> tuple[Any, ...]:
        """What makes two manifolds the same."""
        return type(self), self.shape, self.rank

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackedManifold) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def extra_repr(self) -> str:
        return f"shape={self.shape}, rank={self.rank}"

    # Packing ---------------------------------------------------------------------------------

    def unpack_tensor(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Factors of a packed point (or blocks of a packed tangent vector), as views.

        Parameters
        ----------
        tensor : torch.Tensor
            Shape ``(*batch, size)``.

        Returns
        -------
        tuple of torch.Tensor
            Shapes ``(*batch, *factor_shape)``, one per entry of ``factor_shapes``.

        Raises
        ------
        ValueError
            If the last dimension is not ``size``.
        """
        sizes, shapes = self._factor_sizes(), self.factor_shapes
        if tensor.shape != (sum(sizes),):
            self._assert_check_shape(tensor.shape, "tensor")
            batch = tensor.shape[:-1]
            shapes = tuple((*batch, *shape) for shape in shapes)
        blocks = tensor.split_with_sizes(sizes, -1)
        return tuple(block.reshape(shape) for block, shape in zip(blocks, shapes, strict=True))

    def _factor_sizes(self) -> list[int]:
        """Numbers of entries of the factors, computed once: every operation of every step asks for them."""
        of, sizes = self.__dict__.get("_sizes", (None, []))
        if of is not self.factor_shapes:
            sizes = [math.prod(shape) for shape in self.factor_shapes]
            self.__dict__["_sizes"] = self.factor_shapes, sizes
        return sizes

    def pack_point(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`unpack_tensor`.

        Parameters
        ----------
        *tensors : torch.Tensor
            One per entry of ``factor_shapes``, shapes ``(*batch, *factor_shape)``.

        Returns
        -------
        torch.Tensor
            Shape ``(*batch, size)``.

        Raises
        ------
        ValueError
            If the number or a shape of the factors does not fit.
        """
        if len(tensors) != len(self.factor_shapes):
            raise ValueError(f"{self} has {len(self.factor_shapes)} factors, got {len(tensors)}")
        rows = []
        for number, (tensor, shape) in enumerate(zip(tensors, self.factor_shapes, strict=True)):
            lead = tensor.ndim - len(shape)
            if lead < 0 or tuple(tensor.shape[lead:]) != shape:
                raise ValueError(
                    f"factor {number} of {self} needs the shape {shape} (after the batch), "
                    f"got {tuple(tensor.shape)}"
                )
            rows.append(tensor.flatten(lead))
        if any(row.shape[:-1] != rows[0].shape[:-1] for row in rows):
            batch = torch.broadcast_shapes(*(row.shape[:-1] for row in rows))
            rows = [row.expand(*batch, row.shape[-1]) for row in rows]
        return torch.cat(rows, dim=-1)

    def factors(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What a forward pass contracts; :meth:`unpack_tensor` unless a format offers better gradients."""
        return self.unpack_tensor(x)

    # Checks ----------------------------------------------------------------------------------

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) < 1 or shape[-1] != self.size:
            return False, (
                f"{name} of {self} is a packed vector of {self.size} numbers (after the batch), "
                f"got the shape {tuple(shape)}"
            )
        return True, None

    def _check_dense(self, tensor: torch.Tensor) -> None:
        order = len(self.shape)
        if tensor.ndim < order or tuple(tensor.shape[tensor.ndim - order :]) != self.shape:
            raise ValueError(
                f"{self} needs a dense tensor of shape {self.shape} (after the batch), "
                f"got {tuple(tensor.shape)}"
            )

    # Metric ----------------------------------------------------------------------------------

    def inner(
        self,
        x: torch.Tensor,
        u: torch.Tensor,
        v: torch.Tensor | None = None,
        *,
        keepdim: bool = False,
    ) -> torch.Tensor:
        """Frobenius product of two tangent tensors: the dot product of their coordinates.

        Parameters
        ----------
        x : torch.Tensor
            Base point, shape ``(*batch, size)``; only its batch matters.
        u, v : torch.Tensor
            Tangent vectors, shape ``(*batch, size)``; ``v=None`` means ``u``.
        keepdim : bool
            Keep the last dimension with size 1.

        Returns
        -------
        torch.Tensor
            Shape ``(*batch,)`` or ``(*batch, 1)``. Products outside of the range of the type over- or
            underflow; :meth:`norm` does not.
        """
        product = (u * (u if v is None else v)).sum(-1)
        product = product.expand(torch.broadcast_shapes(x.shape[:-1], product.shape))
        return product.unsqueeze(-1) if keepdim else product

    def norm(self, x: torch.Tensor, u: torch.Tensor, *, keepdim: bool = False) -> torch.Tensor:
        """Frobenius norm of a tangent tensor; see :meth:`inner` for the shapes.

        It is finite wherever the length is, and zero for zero alone; the root of ``inner(x, u)`` is not:
        in float32 the squares overflow above 1e19 and underflow below 1e-23.
        """
        length = vector_norm(u, keepdim=keepdim)
        batch = torch.broadcast_shapes(x.shape[:-1], u.shape[:-1])
        return length.expand(*batch, 1) if keepdim else length.expand(batch)
