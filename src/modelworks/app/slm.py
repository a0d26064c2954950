"""The one model that is meant where no request names one: a base, and the newest adapter on it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from modelworks.app.answers import DeploymentStatus
from modelworks.app.services import Services
from modelworks.core.config import count_gpus
from modelworks.core.errors import Invalid, NotFound
from modelworks.core.nouns import Adapter, Model
from modelworks.core.states import DeploymentState


@dataclass(frozen=True)
class Chosen:
    base: Model
    adapter: Adapter | None

    @property
    def meant(self) -> Model | Adapter:
        return self.adapter or self.base


async def choose(app: Services) -> Chosen:
    """What the settings mean: `slm_adapter`; else the newest adapter of `slm_base`, or that base alone; and where
    that base is not here, the newest adapter of all.

    Raises:
        NotFound: there is nothing to speak with.
        Invalid: `slm_adapter` names no adapter.
    """
    return await asyncio.to_thread(_choose, app)


async def unload(app: Services) -> bool:
    """Give the memory of the model and its adapters back; return whether there was one."""
    try:
        base = (await choose(app)).base
    except NotFound:
        return False
    if _deployed(app, base) is None:
        return False
    await app.gateway.unload(base.id)
    return True


def is_loaded(app: Services, chosen: Chosen) -> bool:
    """Whether it can answer without loading anything."""
    status = _deployed(app, chosen.base)
    if status is None or status.state is not DeploymentState.READY:
        return False
    return chosen.adapter is None or chosen.adapter.name in status.adapters


def device_of(app: Services, chosen: Chosen | None = None) -> str:
    """`cpu` or `cuda`: where the model is, or would be."""
    status = _deployed(app, chosen.base) if chosen else None
    device = status.deployment.device if status else "auto"
    return ("cuda" if count_gpus() else "cpu") if device == "auto" else device.partition(":")[0]


def _choose(app: Services) -> Chosen:
    settings, catalog = app.settings, app.catalog
    try:
        if settings.slm_adapter is not None:
            named = catalog.model(settings.slm_adapter)
            if not isinstance(named, Adapter):
                raise Invalid(f"LoRA model expected: {named.name} is a full model; name it as the base instead")
            return Chosen(catalog.base_of(named), named)
        adapters = [found for found in app.servable() if isinstance(found, Adapter)]
        base = _base_named(app, settings.slm_base)
        if base is not None:
            return Chosen(base, next((found for found in adapters if found.base_digest == base.digest), None))
        if adapters:
            return Chosen(catalog.base_of(adapters[0]), adapters[0])
    except NotFound as error:
        raise NotFound(f"LoRA model not found: {error.message}") from None
    raise NotFound(
        f"LoRA model not found: there is no adapter here, and no model {settings.slm_base!r}; train one "
        "(modelworks train, or POST /finetune), or name a base that is here (--base NAME; modelworks models ls)"
    )


def _base_named(app: Services, name: str) -> Model | None:
    try:
        found = app.catalog.model(name)
    except NotFound:
        return None
    return found if isinstance(found, Model) else app.catalog.base_of(found)


def _deployed(app: Services, base: Model) -> DeploymentStatus | None:
    return next((status for status in app.gateway.deployments() if status.deployment.model == base.id), None)
