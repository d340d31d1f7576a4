"""A kit's bill of materials in CycloneDX 1.6, JSON: every wheel, the model, the detector, each with its hash."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

    from .wheels import Wheel

_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
"""RFC 9562, of names that are addresses."""


def bill(
    kit: Mapping[str, str],
    wheels: Sequence[Wheel],
    depends: Mapping[str, Sequence[str]],
    models: Sequence[Mapping[str, str]],
    content: str,
) -> str:
    """The bill as JSON. ``kit``: name and version of it, and further properties; ``depends``: package -> packages that it
    wants on the box; ``models``: name, version, sha256, licence and file of each; ``content``: a hash of all that the kit
    holds, which names the bill, so that the same kit has the same one and none has a time in it."""
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.dependency import Dependency
    from cyclonedx.output.json import JsonV1Dot6

    properties = [Property(name=f"fer-edge:{name}", value=value) for name, value in kit.items() if name not in _OF_ALL]
    whole = Component(
        type=ComponentType.APPLICATION, name=kit["name"], version=kit["version"], bom_ref="kit", properties=properties
    )
    parts = [*(_of_wheel(wheel) for wheel in wheels), *(_of_model(model) for model in models)]
    bom = Bom(components=parts, serial_number=uuid.uuid5(_NAMESPACE, f"fer-edge:kit:{content}"))
    bom.metadata.component = whole
    bom.metadata.timestamp = None  # type: ignore[assignment]  # a time would make every run's bytes others
    by_name = {part.name: part for part in parts}
    top = [by_name["fer-edge"], *parts[len(wheels) :]]
    edges = [(whole, top), *((by_name[name], [by_name[n] for n in needs]) for name, needs in depends.items())]
    bom.dependencies.update(Dependency(a.bom_ref, [Dependency(b.bom_ref) for b in needs]) for a, needs in edges)
    text: str = JsonV1Dot6(bom).output_as_string(indent=1)
    return f"{text}\n"


_OF_ALL = ("name", "version")


def _of_wheel(wheel: Wheel) -> Component:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    licences: Any = [LicenseFactory().make_from_string(wheel.licence)] if wheel.licence else []
    return Component(
        type=ComponentType.LIBRARY,
        name=wheel.name,
        version=wheel.version,
        bom_ref=f"pypi:{wheel.name}",
        purl=PackageURL("pypi", None, wheel.name, wheel.version, {"file_name": wheel.file.name}),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
        licenses=licences,
    )


def _of_model(model: Mapping[str, str]) -> Component:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    licences: Any = [LicenseFactory().make_from_string(model["licence"])] if model["licence"] else []
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=model["name"],
        version=model["version"] or None,
        bom_ref=f"model:{model['file']}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=model["sha256"])],
        licenses=licences,
    )
