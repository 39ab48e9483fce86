"""Lists of document tiles, made on the device: no host sync, no mask object, no prefix sum.

Tile j of document d takes slot cu[d] // BLOCK + d + j. Slots of different documents never meet, since floor(a / B) +
ceil(L / B) <= floor((a + L) / B) + 1, so T // BLOCK + documents + 1 slots suffice and every slot finds its document by
a binary search. Sorting then puts the tiles with the most work first (longest processing time first) and the empty
slots last. The tokens behind the last document are one more document, without partners, so that every row of every
output is written.
"""

import torch
from fmscale.kernels.attention.device import extent, key_range, query_range, sized
from fmscale.kernels.launch import on, tl
from torch import Tensor

COUNT = 128


@sized("documents", "total", "total_other", "slots", "steps", "window")
def slots_kernel(  # type: ignore[no-untyped-def]
    CU, CU_OTHER, SLOTS, documents, total, total_other, slots, steps, window, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    low = slot * 0
    high = low + documents
    for _ in range(steps):
        middle = (low + high + 1) // 2
        first = tl.load(CU + middle).to(tl.int32)
        here = first // BLOCK + middle <= slot
        low = tl.where(here, middle, low)
        high = tl.where(here, high, middle - 1)
    document = low
    first, length = extent(CU, document, documents, total)
    _, partners = extent(CU_OTHER, document, documents, total_other)
    partners = tl.where(document < documents, partners, 0)
    tile = slot - (first // BLOCK + document)
    start = tile * BLOCK
    if KEYS:
        lo, hi = query_range(start, partners, length, window, CAUSAL, WINDOW, BLOCK)
    else:
        lo, hi = key_range(start, length, partners, window, CAUSAL, WINDOW, BLOCK)
    work = tl.minimum((hi - lo) // 64, 1048575)
    key = ((1048575 - work).to(tl.int64) << 43) | (document.to(tl.int64) << 21) | tile.to(tl.int64)
    key = tl.where((tile >= 0) & (start < length), key, 9223372036854775807)
    tl.store(SLOTS + slot, key, mask=slot < slots)


def slot_count(total: int, documents: int, block: int) -> int:
    """Upper bound of the number of tiles, from sizes that the host knows."""
    return total // block + documents + 1


def tile_list(
    cu: Tensor | None, cu_other: Tensor | None, total: int, total_other: int, *,
    block: int, keys: bool, causal: bool, window: int,
) -> tuple[Tensor | None, int]:  # fmt: skip
    """Sort keys (slots,) int64 of the tiles of `cu`'s documents, most work first, empty slots last; and their number.

    `keys`: tiles of keys, whose work is queries; else tiles of queries, whose work is keys. A window of 0 is off.
    Without documents there is no list: tile j begins at row j * block.
    """
    if cu is None or cu_other is None:
        return None, -(-total // block)
    documents = cu.numel() - 1
    slots = slot_count(total, documents, block)
    sort_keys = torch.empty(slots, dtype=torch.int64, device=cu.device)
    with on(cu.device):
        slots_kernel[(-(-slots // COUNT),)](
            cu, cu_other, sort_keys, documents, total, total_other, slots, (documents + 1).bit_length(), window,
            KEYS=keys, CAUSAL=causal, WINDOW=window > 0, BLOCK=block, COUNT=COUNT, num_warps=4,
        )  # fmt: skip
    return sort_keys.sort().values, slots
