"""The models that one server answers for, chosen by the request's `model`."""

from __future__ import annotations

import hashlib

import tinycluster
from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import RequestError, UnavailableError
from tinycluster.serve.errors import model_not_found


class ModelRegistry:
    """Models by name, in the order of the configuration. Empty until the engines have started."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}
        self._fingerprints: dict[str, str] = {}

    def add(self, engine: Engine) -> None:
        self._engines[engine.name] = engine
        self._fingerprints[engine.name] = _fingerprint(engine)

    def clear(self) -> None:
        """After the server has ended: FastAPI remembers every route that a process ever had, and routes lead here."""
        self._engines.clear()

    def fingerprint(self, engine: Engine) -> str:
        """The `system_fingerprint` of an engine's answers."""
        return self._fingerprints[engine.name]

    @property
    def engines(self) -> tuple[Engine, ...]:
        return tuple(self._engines.values())

    def get(self, name: str | None) -> Engine:
        """The model of this name. A request may leave the name out where only one model is served."""
        if not self._engines:
            raise UnavailableError("The server is starting; no model is loaded yet")
        if name is None:
            if len(self._engines) > 1:
                raise RequestError("model is required: this server has several models", param="model")
            return next(iter(self._engines.values()))
        if name not in self._engines:
            raise model_not_found(name)
        return self._engines[name]

    def words(self) -> str:
        """The models and their meshes, for people: "smollm2, tensor 2 × pipeline 1"."""
        return "; ".join(f"{e.name}, tensor {e.mesh.tensor} × pipeline {e.mesh.pipeline}" for e in self.engines)


def _fingerprint(engine: Engine) -> str:
    """The same for the same answers: of the release and the model, since neither mesh nor batch changes them."""
    identity = f"{tinycluster.__version__} {engine.name} {engine.config}"
    return f"fp_{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
