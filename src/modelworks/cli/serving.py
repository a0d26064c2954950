"""`models ps`, `load` and `unload`: what a running server serves, on how many engines and devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from modelworks.cli.options import Command, Session, pass_session
from modelworks.core.errors import Unavailable

if TYPE_CHECKING:
    from modelworks.app.answers import DeploymentStatus
    from modelworks.client import Client


@contextmanager
def server_client(session: Session) -> Iterator[Client]:
    """A client of --server, else of this workspace's server.

    Raises:
        Unavailable: there is none.
    """
    # Here, since every command of the command line would wait for these imports.
    from modelworks.app.presence import running_server
    from modelworks.client import Client

    own = running_server(session.settings)
    url = session.settings.server or (own.url if own else None)
    if url is None:
        raise Unavailable(f"no server runs on {session.settings.home}; start one with modelworks serve")
    key = session.settings.api_key
    with Client(url, key.get_secret_value() if key else None) as client:
        yield client


@click.command(cls=Command, name="ps", example="modelworks models ps --json")
@pass_session
def list_served(session: Session) -> None:
    """List what the server serves: a line for each engine."""
    with server_client(session) as client:
        found = client.deployments()
    rows = [
        [item.deployment.model_name, item.deployment.engine, replica.device, replica.state.value,
         replica.outstanding, f"{item.tokens_per_second:.0f}", f"{replica.rss_bytes / 1e6:.0f} MB", _until(item),
         replica.pid or "-", ", ".join(item.adapters) or "-"]
        for item in found
        for replica in item.replicas
    ]  # fmt: skip
    headings = (
        "model", "engine", "device", "state", "requests", "tokens/s", "memory", "until", "process", "adapters",
    )  # fmt: skip
    session.answers(found, headings, rows, empty="nothing is loaded; the first question loads a model")


def _until(item: DeploymentStatus) -> str:
    """When it goes if nobody asks; the tokens and the end are those of all its engines."""
    if item.until is not None:
        return item.until.astimezone().strftime("%H:%M:%S")
    return "for good" if item.keep_alive < 0 else "in use"


@click.command(cls=Command, name="load", example="modelworks models load me/first --replicas 2 --device cpu")
@click.argument("name")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:N or auto: the freest GPU, else the CPU.")
@click.option("--replicas", type=click.IntRange(1, 64), default=1, metavar="N", help="Engines that share its requests.")
@click.option("--quantization", type=click.Choice(["none", "int8"]), help="int8: weights in a byte each.")
@click.option("--keep-alive", metavar="TIME", help="How long it stays when nobody asks: 90s, 10m, 1h; -1 for good.")
@pass_session
def load_model(session: Session, name: str, **wishes: Any) -> None:
    """Have a model, adapter or entry ready to answer, on at least so many engines."""
    with server_client(session) as client:
        status = client.load(name, **wishes)
    devices = ", ".join(replica.device for replica in status.replicas)
    session.answer(status, f"{name}  {status.state.value} on {devices}")


@click.command(cls=Command, name="unload", example="modelworks models unload me/first --one")
@click.argument("name")
@click.option("--one", is_flag=True, help="End one engine only; the others go on.")
@pass_session
def unload_model(session: Session, name: str, one: bool) -> None:
    """Let running answers end, then end the engines of a model and free their memory."""
    with server_client(session) as client:
        client.unload(name, one=one)
    session.answer({"model": name, "unloaded": "one" if one else "all"}, f"{name}  unloaded")
