"""Views of synthetic datasets: the order needs only their sizes, never their bytes."""

from fmscale.data.views.token_view import TokenView


def synthetic_view(
    rows: tuple[int, ...], *, rows_per_unit: int = 32, window: int = 2048, name: str = "made-up"
) -> TokenView:
    """A view with these rows in each commit, of 8 tokens."""
    return TokenView(
        dataset=name,
        split="train",
        commits=tuple(range(len(rows))),
        manifests=tuple(f"{i:032x}" for i in range(len(rows))),
        masks=(),
        sequence_length=8,
        packing="stream",
        rows_per_unit=rows_per_unit,
        window=window,
        tokenizer="0" * 32,
        bos=None,
        eos=0,
        dtype="uint16",
        tokens=tuple(count * 8 + 3 for count in rows),
        order_version=1,
    )
