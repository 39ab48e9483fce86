"""A run's model on the command line: its device and precision, and the choice of tokens."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fmscale.infer.load import TrainedModel

Device = Annotated[str, typer.Option(help="auto, cpu or cuda; auto takes a GPU where there is one.")]
Precision = Annotated[str | None, typer.Option(help="fp32 or bf16; fp32 on a CPU, bf16 on a GPU by default.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="CPU threads; by default as many as the work keeps busy.")
]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[int | None, typer.Option(help="Only the k likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Only the likeliest tokens that reach this probability.")]
MinP = Annotated[float | None, typer.Option(help="Only tokens with this share of the likeliest token's probability.")]
Repetition = Annotated[float, typer.Option(help="Penalty of tokens that were there before; 1 for none.")]


def open_model(address: str, device: str, precision: str | None) -> "TrainedModel":
    """The model of a run on the device of that name. Raises as `open_trained`."""
    from fmscale.infer.load import open_trained
    from fmscale.runtime.device import pick_device
    from fmscale.runtime.world import read_world

    return open_trained(address, device=pick_device(read_world(), device), precision=precision)
