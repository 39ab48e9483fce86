"""`fmscale serve`: a run's model behind OpenAI's chat completions, with a page to talk to it."""

import ipaddress
import socket
from typing import Annotated

import typer

from fmscale.cli.address import CheckpointArgument
from fmscale.cli.model import Device, Precision, Threads, open_model
from fmscale.cli.output import example, say
from fmscale.errors import ConfigError

app = typer.Typer()


@app.command(epilog=example("fmscale serve runs/store#run", "fmscale serve runs/store#run --port 8080 --name my-model"))
def serve(
    address: CheckpointArgument,
    host: Annotated[str, typer.Option(help="Address to listen at; other machines reach only another address.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 8000,
    name: Annotated[str | None, typer.Option(help="Name of the model for clients; the run's by default.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most new tokens of an answer.")] = 1024,
    seconds: Annotated[float, typer.Option(min=0.001, help="Most seconds of a request, its wait included.")] = 300.0,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait for the model.")] = 16,
    body_bytes: Annotated[int, typer.Option(min=1, help="Most bytes of a request's body.")] = 2**20,
    grace: Annotated[float, typer.Option(min=0, max=86400, help="Seconds to finish after SIGTERM or ctrl-c.")] = 30.0,
    device: Device = "auto",
    precision: Precision = None,
    threads: Threads = None,
) -> None:
    """Serve a run's model: POST /v1/chat/completions, GET /v1/models, and a page at /.

    One answer at a time; other requests wait. No passwords: whoever reaches the port may ask.
    """
    try:
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "`fmscale serve` needs the package uvicorn", found=str(error), remedy="pip install 'fmscale[serve]'"
        ) from error
    from fmscale.infer.answer import ChatModel
    from fmscale.infer.server.api import Limits
    from fmscale.infer.server.app import LOOPBACK, App
    from fmscale.infer.server.http import listen, make_server, run_server
    from fmscale.infer.server.worker import ModelWorker

    listener = listen(host, port)
    place = listener.getsockname()
    alone = ipaddress.ip_address(place[0]).is_loopback
    model = ChatModel(open_model(address, device, precision))
    limits = Limits(max_tokens=max_tokens, seconds=seconds, waiting=waiting, body_bytes=body_bytes)
    worker = ModelWorker(model, limits, threads)
    called = name or model.trained.run
    web = f"http://[{place[0]}]" if listener.family == socket.AF_INET6 else f"http://{place[0]}"
    say(f"{called} (run {model.trained.run}, step {model.trained.step}) at {web}:{place[1]}/", err=True)
    if not alone:
        say("whoever reaches this address may ask the model, and see the page", err=True)
    app = App(worker, called, limits, LOOPBACK if alone else None)
    run_server(make_server(app, worker, limits, grace), listener)
