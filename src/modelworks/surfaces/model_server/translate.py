"""The Model Server's words in ours, and back."""

from __future__ import annotations

from dataclasses import asdict

from modelworks.app.serving import Standing
from modelworks.core.generation import ChatMessage, GenerateRequest
from modelworks.core.ids import new_id
from modelworks.surfaces.model_server import wire

TEMPERATURE = 0.7


def to_request(name: str, body: wire.CallIn, *, as_sent: bool) -> GenerateRequest:
    """What to ask the engine; `as_sent` leaves the roles as the caller wrote them."""
    roles = {} if as_sent else {"agent": "assistant"}
    return GenerateRequest(
        id=new_id(),
        model=name,
        messages=tuple(ChatMessage(roles.get(each.role, each.role), each.content) for each in body.messages),
        temperature=TEMPERATURE if body.temperature is None else body.temperature,
        max_tokens=body.max_tokens,
    )


def to_info(standings: list[Standing]) -> wire.InfoOut:
    return wire.InfoOut(info={standing.name: _to_model(standing) for standing in standings})


def _to_model(standing: Standing) -> wire.ModelOut:
    return wire.ModelOut(
        kind=standing.kind,
        state=standing.state,
        replicas=len(standing.replicas),
        device=[replica.device for replica in standing.replicas],
        entities=[wire.EntityOut(**asdict(replica)) for replica in standing.replicas],
        error=standing.error,
    )
