"""A handful of texts with the vectors that the exporter got, run once on every machine that uses a bundle.

An int8 graph depends on arithmetic that differs between CPUs, and on behaviour of onnxruntime that its documentation
does not promise. The probe finds a CPU that saturates, a changed kernel or a broken provider before a user's data does.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stonnx._bundle.bundle import Bundle
from stonnx._bundle.manifest import ImageTower, Manifest
from stonnx._cache import is_remembered, remember
from stonnx._device import nvidia
from stonnx._device.cpus import cpu_features, cpu_name
from stonnx._device.providers import PROVIDERS
from stonnx._errors import BundleFormatError, ProbeError
from stonnx._tasks import TASKS, TaskRow
from stonnx._text.inputs import parse_inputs
from stonnx._text.tokenizer import characters_of
from stonnx._text.tokens import Text

if TYPE_CHECKING:
    from stonnx._engine.graph_session import GraphSession
    from stonnx._engine.image_route import ImageRoute
    from stonnx._engine.route import LoadedRoute

FILE = "probe.npz"
# The bounds of a probe. It comes from outside, and loading a bundle runs it. The largest vectors are those of sparse
# models: 8 texts, a vocabulary of 250,000, a few forms and routes.
_MOST_BYTES = 128 << 20
_MOST_TEXTS = 64
_MOST_CHARACTERS = 10_000
_PASSED = "probes"
# The names of the vectors of the two forms of an int8 graph. Other graphs use the first.
_KEYS = {"full-range": "route", "saturation-safe": "safe"}
# The lowest cosine between vectors of the two forms, if a bundle has those of the other one only: 0.986 was seen.
_BETWEEN_FORMS = 0.97
# The lowest cosine of native kernels to the stock operators that the exporter ran, by the bundle's precision. The
# int8 kernels give every token a scale of its own; the others multiply bfloat16. Over the models of tests/zoo, the
# lowest were 0.991 and 0.9991; for all-MiniLM-L6-v2, 0.998 and 0.99998.
_OF_KERNELS = {"int8": 0.98, "float32": 0.998, "bfloat16": 0.998}
# The lowest cosine of the vectors of images, whose graph is in float32. GPUs multiply in 19 bits.
_OF_IMAGES = 0.999
# For rerankers' logits, the least share of their size that counts as the distance between them.
_LEAST_SPREAD = 0.1

_TEXTS = (
    "A man is playing a large flute on the stage while a crowd of people listens to the music in the evening.",
    "naïve café – “quoted” — 1,234.5 ½ Ω 猫が窓辺で眠っている。",
    "rain",
    "The committee met on Tuesday to discuss the new budget. After three hours no decision had been made, and the "
    "chair asked every member to write down what they could do without. Two answers came back within the week.",
)


# With these texts, rerankers give different scores.
_ANSWERS = (
    "Somebody performs on a flute for an audience.",
    "猫は窓のそばで寝ています。",
    "It rained all day.",
    "What did the committee decide about the budget?",
)


def texts_of(task: str) -> list[Text]:
    """The texts of the probe; for rerankers, each with a matching text and with another one."""
    if not TASKS[task].reads_pairs:
        return [*_TEXTS]
    return [*zip(_TEXTS, _ANSWERS, strict=True), *zip(_TEXTS, _TEXTS[1:] + _TEXTS[:1], strict=True)]


def outputs_of(route: LoadedRoute, task: str, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
    """The outputs of a route for the texts: vectors or logits [texts, features], computed in one batch.

    If a text has a vector for each token, these stand one after the other, with zeros at the end: [queries and
    documents, features of the longest].
    """
    row = TASKS[task]
    if row.row_mask is not None:
        found = [each.ravel() for kind in ("query", "document") for each in rows_of_texts(route, row, kind, texts)]
        width = max(map(len, found))
        return np.stack([np.pad(each, (0, width - len(each))) for each in found])
    rows: dict[int, npt.NDArray[np.float32]] = {}
    for batch in route.stream(list(texts), [TASKS[task].output], batch_size=1024):
        rows |= {int(index): row for index, row in zip(batch.indices, batch.outputs[0], strict=True)}
    return np.stack([rows[index] for index in range(len(texts))])


def rows_of_texts(
    route: LoadedRoute, row: TaskRow, kind: str | None, texts: Sequence[Text], *, batch_size: int = 1024
) -> list[npt.NDArray[np.float32]]:
    """The vectors of each text's tokens that count, [rows, features], if the texts are called ``kind``."""
    assert row.row_mask is not None
    found: dict[int, npt.NDArray[np.float32]] = {}
    outputs = [row.output, row.row_mask]
    for batch in route.stream(list(texts), outputs, batch_size=batch_size, task=kind):
        kept = batch.outputs[1].astype(np.bool_)
        found |= {int(index): batch.outputs[0][number][kept[number]] for number, index in enumerate(batch.indices)}
    return [found[index] for index in range(len(texts))]


def write(
    directory: Path,
    manifest: Manifest,
    routes: Mapping[str, LoadedRoute],
    safe_routes: Mapping[str, LoadedRoute] | None = None,
) -> None:
    """Write the probe of a bundle: its texts, and the outputs of each route for them.

    ``safe_routes`` are the same routes in the form of an int8 graph that cannot saturate, which has other vectors. On a
    CPU that needs this form, ``routes`` have it already, and the vectors of the other form stay unknown.
    """
    texts = texts_of(manifest.task)
    # Without pickle, numpy does not store texts of different lengths; JSON in bytes works.
    encoded = np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)
    vectors = {
        f"{_KEYS.get(route.session.form, 'route')}.{name}": outputs_of(route, manifest.task, texts)
        for some in (routes, safe_routes or {})
        for name, route in some.items()
    }
    np.savez_compressed(directory / FILE, texts=encoded, **vectors)  # type: ignore[arg-type]


def image_pattern(tower: ImageTower) -> npt.NDArray[np.float32]:
    """Two images of the probe, the same numbers on every machine: float32 [2, 3, height, width]."""
    shape = next(spec.shape for spec in tower.inputs if spec.name == "pixel_values")
    channel, row, column = np.indices([int(size) for size in shape[1:]])
    steps = [(3 * row + 5 * column + 31 * channel) % 64, (row * column + 17 * channel) % 64]
    return ((np.stack(steps) - 32) / 16).astype(np.float32)


def write_image_vectors(directory: Path, routes: Sequence[ImageRoute]) -> None:
    """Add the vectors of the graph of images to the probe of a bundle, in each form that it has."""
    with np.load(directory / FILE, allow_pickle=False) as arrays:
        known = {name: arrays[name] for name in arrays}
    own = {_image_key(route.session.form): route.run(image_pattern(route.spec)) for route in routes}
    np.savez_compressed(directory / FILE, **known, **own)  # type: ignore[arg-type]


def _image_key(form: str) -> str:
    """The name of the vectors of images in one of the two forms of an int8 graph; other graphs use the first."""
    return "safe.image" if form == "saturation-safe" else "image"


def run_image_probe(bundle: Bundle, route: ImageRoute) -> None:
    """Run the probe of the graph of images, unless this machine has passed it before.

    Raises:
        ProbeError: The graph does not run, or gives other vectors than where it was exported.
        BundleFormatError: The probe cannot be read.
    """
    if bundle.manifest.probe is None:
        return
    session = route.session
    parts: list[Any] = [bundle.identity, session.device, session.version, session.form, session.kernels]
    parts += [cpu_name(), cpu_features(), _gpu(session.device)]
    identity = hashlib.sha256(json.dumps(["image", *parts]).encode()).hexdigest()
    if is_remembered(_PASSED, identity):
        return
    file = bundle.manifest.probe.file
    try:
        with np.load(io.BytesIO(bundle.read(file)), allow_pickle=False) as arrays:
            own = "image" if session.kernels else _image_key(session.form)
            found = next((key for key in (own, "image", "safe.image") if key in arrays), own)
            expected = np.asarray(arrays[found], dtype=np.float32)
    except Exception as error:  # numpy, zipfile and zlib each raise their own errors for damage
        raise BundleFormatError(
            f"{bundle.directory / file} has no vectors of images that can be read ({error}). Export the model again "
            "with: stonnx export MODEL"
        ) from error
    again = "export the model again with: stonnx export MODEL"
    try:
        actual = route.run(image_pattern(route.spec))
    except Exception as error:  # onnxruntime's errors share no public base class
        problem = f"has a graph of images that does not run, with {_what_runs(session)} on {session.device}: {error}"
        raise _failure(bundle.directory, problem, f"{_advice(session)}, or {again}") from error
    closeness = lowest_cosine(bundle.manifest.task, expected, actual)
    usual = _OF_IMAGES if route.spec.precision == "float32" else bundle.manifest.probe.cosine_min
    allowed = _allowed(usual, route.spec.precision, session, other=found != own)
    if not closeness >= allowed:
        problem = (
            f"gives images other vectors on this machine than where it was exported: cosine {closeness:.5f}, allowed "
            f"is at least {allowed}, with {_what_runs(session)} on {session.device}, {cpu_name()}."
        )
        raise _failure(bundle.directory, problem, f"{_advice(session)}, or {again}")
    remember(_PASSED, identity)


def run_probe(bundle: Bundle, routes: Mapping[str, LoadedRoute]) -> None:
    """Run the probe of a bundle, unless this machine has passed it before.

    Raises:
        ProbeError, BundleFormatError: As for :func:`compare`.
    """
    if bundle.manifest.probe is None:
        return
    identity = _identity(bundle.manifest, routes)
    if not is_remembered(_PASSED, identity):
        compare(bundle, routes)
        remember(_PASSED, identity)


def compare(bundle: Bundle, routes: Mapping[str, LoadedRoute]) -> float:
    """Run the probe of a bundle, which must have one.

    Returns:
        The lowest cosine between a vector here and the exporter's.

    Raises:
        ProbeError: The graph does not run, or its vectors are further from the exporter's than the manifest allows.
        BundleFormatError: The probe cannot be read.
    """
    directory, manifest = bundle.directory, bundle.manifest
    assert manifest.probe is not None
    texts, expected, others = _read(bundle, manifest.probe.file, routes)
    lowest = 1.0
    for name, route in routes.items():
        try:
            actual = outputs_of(route, manifest.task, texts)
        except Exception as error:  # onnxruntime's errors share no public base class
            found = f"is loaded but does not run, with {_what_runs(route.session)} on {route.session.device}: {error}"
            raise _failure(
                directory, found, f"{_advice(route.session)}, or export the model again with: stonnx export MODEL"
            ) from error
        closeness = lowest_cosine(manifest.task, expected[name], actual)
        allowed = _allowed(manifest.probe.cosine_min, manifest.precision, route.session, other=name in others)
        if not closeness >= allowed:  # a NaN too
            found = (
                f"gives other vectors on this machine than on the machine that exported it: cosine {closeness:.5f}, "
                f"allowed is at least {allowed}. It runs in {manifest.precision} with {_what_runs(route.session)} on "
                f"{route.session.device}, {cpu_name()}."
            )
            raise _failure(
                directory,
                found,
                f"{_advice(route.session)}, or export the model again with --dtype fp32; 'stonnx doctor' shows what "
                "this machine can do.",
            )
        lowest = min(lowest, closeness)
    return lowest


def _failure(directory: Path, found: str, advice: str) -> ProbeError:
    error = ProbeError(f"{directory} {found} {advice}")
    error.reason = found
    return error


def _what_runs(session: GraphSession) -> str:
    native = f" and native kernels ({session.kernels})" if session.kernels else ""
    return f"onnxruntime {session.version}{native}"


def _advice(session: GraphSession) -> str:
    without = "Load it without native kernels (STONNX_KERNELS=0, and no device_options bfloat16), try"
    return f"{without if session.kernels else 'Try'} another onnxruntime version or device"


def _allowed(usual: float, precision: str, session: GraphSession, *, other: bool) -> float:
    """The lowest cosine that a session may have to the exporter's vectors, ``other`` if they are of the other form."""
    bounds = [usual]
    if session.kernels:
        bounds.append(_OF_KERNELS[precision])
    # Kernels have the full range on every CPU. The remaining stock operators may not.
    if other or (session.kernels and session.form == "saturation-safe"):
        bounds.append(_BETWEEN_FORMS)
    return min(bounds)


def _key(session: GraphSession) -> str:
    """The name of the vectors to compare a session's vectors with."""
    return "route" if session.kernels else _KEYS.get(session.form, "route")


def _identity(manifest: Manifest, routes: Mapping[str, LoadedRoute]) -> str:
    """A text of everything that the result of a probe depends on."""
    parts: list[Any] = [sorted((name, entry.sha256) for name, entry in manifest.files.items())]
    sessions = [route.session for route in routes.values()]
    parts += [[session.device, session.version, session.form, session.kernels] for session in sessions]
    parts += [cpu_name(), cpu_features(), sorted({_gpu(session.device) for session in sessions})]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _gpu(device: str) -> str:
    """The name of a device's GPU, which differs between machines; empty for other devices."""
    name, _, index = device.partition(":")
    return nvidia.gpu_name(int(index or 0)) if any(row.nvidia for row in PROVIDERS if row.device == name) else ""


def _read(
    bundle: Bundle, file: str, routes: Mapping[str, LoadedRoute]
) -> tuple[list[Text], dict[str, npt.NDArray[np.float32]], set[str]]:
    """The texts, the vectors of each route, and the routes whose vectors are those of the other form."""
    content = bundle.read(file)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            size = sum(member.file_size for member in arrays.zip.infolist())
            if size > _MOST_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes, up to {_MOST_BYTES:,} are allowed")
            texts, _ = parse_inputs(list(json.loads(bytes(arrays["texts"]))))
            characters = sum(map(characters_of, texts))
            if not texts:
                raise ValueError("it has no texts")
            if len(texts) > _MOST_TEXTS or characters > _MOST_CHARACTERS:
                raise ValueError(
                    f"it has {len(texts):,} texts of {characters:,} characters, up to {_MOST_TEXTS} texts of "
                    f"{_MOST_CHARACTERS:,} are allowed"
                )
            vectors, others = {}, set()
            for name, route in routes.items():
                own = f"{_key(route.session)}.{name}"
                found = next((key for key in (own, f"route.{name}", f"safe.{name}") if key in arrays), own)
                vectors[name] = np.asarray(arrays[found], dtype=np.float32)
                if found != own:
                    others.add(name)
            return texts, vectors, others
    except Exception as error:  # numpy, zipfile, zlib and json each raise their own errors for damage
        raise BundleFormatError(
            f"{bundle.directory / file} is not a probe that can be read ({error}). Export the model again with: "
            "stonnx export MODEL"
        ) from error


def lowest_cosine(task: str, expected: npt.NDArray[np.float32], actual: npt.NDArray[np.float32]) -> float:
    """The lowest cosine of a text's vectors; of rerankers, 1 - d^2 / 2 of the distance d between their logits.

    That is the cosine of unit vectors at this distance. The distance is relative to the spread of the logits around
    their mean, as for ranks: a cosine of logits that are all about -11 would be meaningless.
    """
    if expected.shape != actual.shape:
        return float("nan")
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    if TASKS[task].gives_labels:
        spread = max(float(np.square(a - a.mean(axis=0)).sum()), _LEAST_SPREAD**2 * float(np.square(a).sum()))
        with np.errstate(invalid="ignore", over="ignore"):
            distance = float(np.square(a - b).sum())
            return 1 - distance / 2 / spread if distance else 1.0
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    with np.errstate(invalid="ignore"):  # infinities become NaN, which no bound allows
        return float(np.min(np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30))))
