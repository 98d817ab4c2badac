"""Where merged regions lie in the frame: share, centroid, box and patch map (pure, all frames at once)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class RegionGeometry:
    """Shape of every region, index 0 being the class token.

    Coordinates are fractions of the square that the model saw (x to the right, y down). The class token
    covers the whole frame by convention: no patches, centroid in the middle, box 0, 0, 1, 1, an empty map.
    """

    patches: Int[Tensor, "frames regions"]
    centroid_xy: Float[Tensor, "frames regions 2"]
    box_xyxy: Float[Tensor, "frames regions 4"]
    patch_map: UInt8[Tensor, "frames regions bytes"]


def region_geometry(
    source: Int[Tensor, "frames patches"], regions: int, grid: tuple[int, int]
) -> RegionGeometry:
    """Geometry of R regions and the class token from the region of each patch.

    Args:
        source: region of each patch, 1..regions; patches in row-major order of the grid.
        regions: R, every one of which owns at least one patch.
        grid: patch rows and columns (h, w).
    """
    rows, columns = grid
    member = source.unsqueeze(1) == torch.arange(1, regions + 1, device=source.device).view(1, -1, 1)
    patches = member.sum(-1)
    row = torch.arange(rows, device=source.device).repeat_interleave(columns)
    column = torch.arange(columns, device=source.device).repeat(rows)
    x0, x1, cx = _extent(member, column, columns, patches)
    y0, y1, cy = _extent(member, row, rows, patches)
    return RegionGeometry(
        _after(0, patches),
        torch.stack([_after(0.5, cx), _after(0.5, cy)], -1),
        torch.stack([_after(0, x0), _after(0, y0), _after(1, x1), _after(1, y1)], -1),
        pack_patches(F.pad(member, (0, 0, 1, 0))),
    )


def _extent(
    member: Bool[Tensor, "frames regions patches"],
    position: Int[Tensor, " patches"],
    cells: int,
    patches: Int[Tensor, "frames regions"],
) -> tuple[Float[Tensor, "frames regions"], Float[Tensor, "frames regions"], Float[Tensor, "frames regions"]]:
    """Start, end and mean of the regions along one axis of ``cells`` cells, as fractions."""
    first = position.where(member, cells).amin(-1) / cells
    last = (position.where(member, -1).amax(-1) + 1) / cells
    total = position.where(member, 0).sum(-1)
    return first, last, (total / patches + 0.5) / cells


def _after(frame: int | float, regions: Tensor) -> Tensor:
    """The regions' values after that of the frame, made where they are: a copy would wait for the device."""
    return F.pad(regions, (1, 0), value=frame)


def pack_patches(member: Bool[Tensor, "*axes patches"]) -> UInt8[Tensor, "*axes bytes"]:
    """Eight patches to a byte, the first in the highest bit, zeros at the end (as ``np.packbits``)."""
    padded = F.pad(member.to(torch.uint8), (0, -member.shape[-1] % 8))
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=member.device)
    return padded.unflatten(-1, (-1, 8)).bitwise_left_shift(shifts).sum(-1, dtype=torch.uint8)


def unpack_patches(packed: UInt8[Tensor, "*axes bytes"], patches: int) -> Bool[Tensor, "*axes patches"]:
    """Inverse of ``pack_patches``."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    bits = packed.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and(1)
    return bits.flatten(-2)[..., :patches].bool()
