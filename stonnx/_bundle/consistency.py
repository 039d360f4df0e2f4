"""Loading refuses a manifest that contradicts itself or the graph that it describes. No call has to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stonnx._bundle.manifest import EXPORT_AGAIN, ImageTower, Manifest, Route, TensorSpec
from stonnx._errors import BundleFormatError
from stonnx._tasks import TASKS

# Far above what any model has.
_MOST_FILES = 1000
_LONGEST_EXPANSION = 1 << 16
_MOST_TOKENS = 2**31 - 1
_MOST_PIXELS = 10_000

# The inputs that the runtime gives a graph. All after `token_type_ids` are for graphs that ask for them.
_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_INPUTS |= {"prompt_length", "token_limit", "query_rows", "is_query"}

# The slots of a chat template's form.
_SLOTS = ("query", "document", "text", "prompt")

# The sizes of a tensor as onnxruntime tells them: a number, a name, or None.
Shape = tuple[int | str | None, ...]

_Require = Callable[[bool, str, object, str], None]


def check_manifest(manifest: Manifest, path: Path) -> None:
    """Check that the values of a manifest are possible and fit each other.

    Args:
        manifest: The manifest.
        path: Its name, for messages.

    Raises:
        BundleFormatError: They are not possible or do not fit. The message names the field.
    """

    def require(condition: bool, field: str, found: object, allowed: str) -> None:
        if not condition:
            raise BundleFormatError(f"{path}: {field} is {found!r}, allowed is {allowed}. {EXPORT_AGAIN}")

    require(len(manifest.files) <= _MOST_FILES, "the number of files", len(manifest.files), f"up to {_MOST_FILES}")
    row = TASKS[manifest.task]
    for name, route in manifest.routes.items():
        _check_tokenizer(f"routes.{name}.tokenizer", route, require)
        for spec in route.outputs:
            sizes = [size for size in spec.shape if isinstance(size, int)]
            place = f"routes.{name}.outputs: the shape of {spec.name}"
            require(len(spec.shape) >= 1 and all(size > 0 for size in sizes), place, list(spec.shape), "positive sizes")
    output = next((spec for spec in manifest.routes[manifest.default_route].outputs if spec.name == row.output), None)
    if output is not None:
        _check_result(manifest, output, require)
    if manifest.image is not None:
        _check_image(manifest, manifest.image, require)
    # Any truncate_dim is allowed: it cuts as a slice does, so 0 and negative numbers mean what they do in the original.
    most = manifest.max_active_dims
    require(most is None or most > 0, "max_active_dims", most, "a positive number or null")
    prompts = {*manifest.prompts} | (set() if row.gives_labels else {"query", "document"})
    default = manifest.default_prompt_name
    require(default is None or default in prompts, "default_prompt_name", default, f"null or one of {sorted(prompts)}")
    if manifest.probe is not None:
        lowest = manifest.probe.cosine_min
        require(0 < lowest <= 1, "probe.cosine_min", lowest, "above 0 and up to 1")


def _check_image(manifest: Manifest, tower: ImageTower, require: _Require) -> None:
    row, processor = TASKS[manifest.task], tower.processor
    require(row.name == "embedding", "image", "a graph of images", "null for this task")
    require(0 < tower.tokens <= _MOST_TOKENS, "image.tokens", tower.tokens, "a positive number")
    precisions = {"float32", manifest.precision}
    require(tower.precision in precisions, "image.precision", tower.precision, f"one of {sorted(precisions)}")
    shape = next((spec.shape for spec in tower.inputs if spec.name == "pixel_values"), ())
    place = "image.inputs: the shape of pixel_values"
    sizes = [size for size in shape[2:] if isinstance(size, int)]
    require(len(shape) == 4 and shape[1] == 3 and len(sizes) == 2, place, list(shape), "['batch', 3, height, width]")
    require(all(0 < size <= _MOST_PIXELS for size in sizes), place, list(shape), f"sizes up to {_MOST_PIXELS}")
    vectors = next((spec.shape for spec in tower.outputs if spec.name == row.output), ())
    allowed = ["batch", manifest.embedding_dimension]
    require(
        list(vectors) == allowed, f"image.outputs: the shape of {row.output}", list(vectors), f"{allowed}, as texts"
    )
    size, crop = processor.size, processor.crop
    names = set() if size is None else set(size)
    require(names in (set(), {"shortest_edge"}, {"height", "width"}), "image.processor.size", size, "an edge, or both")
    edges = [*(size or {}).values(), *(crop or ())]
    require(all(0 < edge <= _MOST_PIXELS for edge in edges), "image.processor", edges, f"sizes up to {_MOST_PIXELS}")
    final = list(crop) if crop is not None else [(size or {}).get("height"), (size or {}).get("width")]
    require(final == sizes, "image.processor", final, f"a processor that ends with {sizes} pixels, as the graph reads")
    require(0 <= processor.resample <= 5, "image.processor.resample", processor.resample, "a filter of pillow, 0 to 5")
    mean, std = processor.mean, processor.std
    require((mean is None) == (std is None), "image.processor.std", std, "a value if mean has one")
    for field, values in (("mean", mean), ("std", std)):
        require(values is None or len(values) == 3, f"image.processor.{field}", values, "a number for each channel")
    require(std is None or all(std), "image.processor.std", std, "numbers other than 0")


def _check_result(manifest: Manifest, output: TensorSpec, require: _Require) -> None:
    row, shape = TASKS[manifest.task], output.shape
    place = f"routes.{manifest.default_route}.outputs: the shape of {output.name}"
    sizes = "two sizes, of the batch and of a row" if row.row_mask is None else "three sizes: texts, tokens, dimensions"
    require(len(shape) == (2 if row.row_mask is None else 3), place, list(shape), sizes)
    field = "num_labels" if row.gives_labels else "embedding_dimension"
    found = manifest.num_labels if row.gives_labels else manifest.embedding_dimension
    require(found is None or found == shape[-1], field, found, f"{shape[-1]!r}, the size of a row of {row.output}")
    require(found is None or found > 0, field, found, "a positive number")
    if row.gives_labels and manifest.labels and found is not None:
        require(len(manifest.labels) == found, "the number of labels", len(manifest.labels), f"{found}, as num_labels")


def check_task(manifest: Manifest, path: Path) -> None:
    """Check that every graph has the output that is the result of the task.

    Raises:
        BundleFormatError: A graph does not have it.
    """
    row = TASKS[manifest.task]
    for output in filter(None, (row.output, row.row_mask)):
        for name, route in manifest.routes.items():
            if all(spec.name != output for spec in route.outputs):
                raise BundleFormatError(
                    f"{path}: routes.{name} has no output {output!r}, which is a result of the task "
                    f"{manifest.task!r}. {EXPORT_AGAIN}"
                )


def _check_tokenizer(place: str, route: Route, require: _Require) -> None:
    spec = route.tokenizer
    limit, positions = spec.max_seq_length, spec.max_positions
    numbers = {"pad_token_id": spec.pad_token_id, "pad_token_type_id": spec.pad_token_type_id}
    for field, value in numbers.items():
        require(0 <= value <= _MOST_TOKENS, f"{place}.{field}", value, "a token id, from 0 on")
    for value in spec.special_token_ids:
        require(0 <= value <= _MOST_TOKENS, f"{place}.special_token_ids", value, "token ids, from 0 on")
    for chat in () if spec.chat is None else filter(None, (spec.chat, spec.chat.of_query, spec.chat.of_document)):
        forms = set(chat.contents)
        require(bool(forms) and forms <= {"text", "parts"}, f"{place}.chat.contents", forms, "'text', 'parts' or both")
        for name in ("pair", "pair_with_prompt", "text", "text_with_prompt"):
            form = getattr(chat, name)
            allowed = f"null, or literal texts in turn with {', '.join(_SLOTS)}"
            require(form is None or _is_form(form), f"{place}.chat.{name}", form, allowed)
    require(
        positions is None or 0 < positions <= _MOST_TOKENS, f"{place}.max_positions", positions, "a number of tokens"
    )
    limits: dict[str, int | None] = {
        "max_seq_length": limit,
        "query_length": spec.query_length,
        "document_length": spec.document_length,
    }
    if spec.expansion is not None:
        token, length = spec.expansion.token_id, spec.expansion.length
        # Every query gets so many tokens, whatever its text.
        most = min(positions or _LONGEST_EXPANSION, _LONGEST_EXPANSION)
        require(0 < length <= most, f"{place}.expansion.length", length, f"up to {most} tokens")
        require(0 <= token <= _MOST_TOKENS, f"{place}.expansion.token_id", token, "a token id, from 0 on")
    for field, tokens in limits.items():
        if tokens is not None:
            allowed = "a number of tokens" if positions is None else f"up to {positions}, as max_positions"
            require(0 < tokens <= (positions or _MOST_TOKENS), f"{place}.{field}", tokens, allowed)


def _is_form(form: tuple[str, ...]) -> bool:
    """Whether literal texts and known slots take turns."""
    return len(form) % 2 == 1 and all(slot.removesuffix("|trim") in _SLOTS for slot in form[1::2])


def check_image_graph(tower: ImageTower, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], path: Path) -> None:
    """:func:`check_graph` for the graph of images."""
    unknown = sorted({*inputs} - {"pixel_values"})
    if unknown:
        raise BundleFormatError(f"{path} requires the input {unknown[0]!r}, which images do not have. {EXPORT_AGAIN}")
    _check_outputs(tower.outputs, outputs, path)


def check_graph(route: Route, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], path: Path) -> None:
    """Check that a graph fits the manifest.

    Args:
        route: The manifest's entry for the graph.
        inputs: The inputs that the graph requires, with their shapes.
        outputs: Its outputs, with theirs.
        path: The graph, for messages.

    Raises:
        BundleFormatError: The graph does not fit.
    """
    unknown = sorted({*inputs} - _INPUTS)
    if unknown:
        raise BundleFormatError(f"{path} requires the input {unknown[0]!r}, which stonnx does not have. {EXPORT_AGAIN}")
    _check_outputs(route.outputs, outputs, path)


def _check_outputs(promised: Sequence[TensorSpec], outputs: Mapping[str, Shape], path: Path) -> None:
    for spec in promised:
        if spec.name not in outputs:
            raise BundleFormatError(
                f"{path} has no output {spec.name!r}, although the manifest says so. It has: {', '.join(outputs)}. "
                f"{EXPORT_AGAIN}"
            )
        found = outputs[spec.name]
        if len(found) != len(spec.shape) or any(
            one != other
            for one, other in zip(found, spec.shape, strict=True)
            if isinstance(one, int) and isinstance(other, int)
        ):
            raise BundleFormatError(
                f"{path}: the output {spec.name!r} has the shape {list(found)}, and the manifest says "
                f"{list(spec.shape)}. {EXPORT_AGAIN}"
            )
