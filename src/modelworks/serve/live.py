"""A model that an engine merges itself, in memory: never on the disk, and changed while it is served."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from modelworks.core.nouns import JsonObject, Model
from modelworks.serve.engine import Engine, EngineKind, EngineSpec, Place


@dataclass(eq=False)
class Live:
    """One engine's worth of weights, made from a recipe that only the engine understands.

    `frame` gives tokenizer and config. `recipe` is what the weights are made from, also after the engine has died;
    `told` is what making them found. Whoever changes them holds the lock.
    """

    name: str
    frame: Model
    recipe: JsonObject
    told: JsonObject = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self, kind: EngineKind, spec: EngineSpec, place: Place) -> Engine:
        """An engine that has made its weights."""
        engine = await kind.start(spec, place)
        try:
            self.told = await engine.remake(self.recipe)
        except BaseException:  # cancelled too: nobody else knows of this engine yet
            await engine.stop()
            raise
        return engine

    async def change(self, engine: Engine, recipe: JsonObject) -> None:
        """Have other weights. If it fails, the recipe and the weights stay as they were."""
        self.told = await engine.remake(recipe)
        self.recipe = recipe
