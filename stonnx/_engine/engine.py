"""Texts in, graph outputs out: the tokenization, batch planning and sessions of one bundle, put together.

The three model classes are thin layers over :class:`Engine`. This file does not know the meaning of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from stonnx._arguments import check_text, device_name
from stonnx._bundle.bundle import Bundle
from stonnx._bundle.consistency import check_task
from stonnx._bundle.manifest import DEFAULT_ROUTE, MANIFEST_NAME, ImageTower, Manifest, Route
from stonnx._device.cpus import require_features
from stonnx._device.device_options import DeviceOptions
from stonnx._device.facts import GraphFacts
from stonnx._device.kernels import WITHOUT
from stonnx._device.opening import open_session
from stonnx._engine import probe
from stonnx._engine.graph_session import GraphSession
from stonnx._engine.image_route import ImageRoute
from stonnx._engine.route import LoadedRoute
from stonnx._errors import InvalidArgumentError, ProbeError
from stonnx._limits import Limits
from stonnx._tasks import TASKS


class Engine:
    """A loaded bundle: one tokenizer and one graph for each of its routes.

    Its memory on the CPU, without Python and its packages, has a ceiling for any number of texts:

    - the weights, and with several threads a second copy of up to 512 MB (:mod:`stonnx._engine.runner`);
    - for each thread the activations of one run, of at most ``max_batch_tokens`` tokens or what ``batch_size`` stands
      for, and its outputs, at most 8 MB of vectors. onnxruntime takes up to twice as much, and keeps what a larger run
      took until :meth:`LoadedRoute.trim`, except that of a single text over the budget;
    - two windows of tokenized texts, of 262,144 characters each, or one longer text;
    - the results, and for each thread those of two or three runs that nobody has taken yet. ``reduce`` makes these
      small in the thread that ran them.

    Args:
        bundle: The bundle. A session or a tokenizer that is loaded later comes from it too.
        device: The device that it runs on. None: the best one that works.
        threads: Threads on the CPU. None: as many as the process may use CPUs.
        max_batch_tokens: The most tokens of a run, padding included, whatever the batch size. Only a single text may
            have more.
        limits: Sizes and times. None: the usual ones.
        device_options: How to use the device.
        form: Which form of int8 graphs runs. None: the one that this CPU needs.
        kernels: Whether native kernels may run blocks that they can run. If the probe refuses them, stock operators
            run.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str | None = None,
        threads: int | None = None,
        max_batch_tokens: int | None = None,
        device_options: DeviceOptions | None = None,
        form: Literal["full-range", "saturation-safe"] | None = None,
        limits: Limits | None = None,
        kernels: bool = True,
    ) -> None:
        limits = limits or Limits()
        self.bundle = bundle
        self.directory = bundle.directory
        if not isinstance(device_options, DeviceOptions | None):
            raise InvalidArgumentError(f"device_options must be stonnx.DeviceOptions or None, got {device_options!r}.")
        if device_options is not None:
            device_options.check(None if device is None else device_name(device))
        self.manifest: Manifest = bundle.manifest
        check_task(self.manifest, bundle.directory / MANIFEST_NAME)
        require_features(self.manifest.requires_cpu_features, f"The bundle {bundle.directory}")

        def load(route: Route, refused: str) -> Callable[[int | None], GraphSession]:
            def session(count: int | None) -> GraphSession:
                return bundle.load_graph(
                    route.graph,
                    lambda path: open_session(
                        path,
                        name=bundle.directory / route.graph,
                        # Only the CPU session takes a thread count.
                        device="cpu" if count else device,
                        threads=count or threads,
                        saturation_safe=route.saturation_safe,
                        form=form,
                        kernels=kernels,
                        refused=refused,
                        facts=GraphFacts.of(self.manifest, route),
                        options=device_options,
                        spin_microseconds=limits.spin_microseconds,
                    ),
                )

            return session

        def routes(refused: str = "") -> dict[str, LoadedRoute]:
            return {
                name: LoadedRoute(bundle, route, load(route, refused), max_batch_tokens, limits)
                for name, route in self.manifest.routes.items()
            }

        self._routes = routes()
        refused = ""
        try:
            probe.run_probe(bundle, self._routes)
        except ProbeError as error:
            wanted = device_options is not None and device_options.bfloat16
            if wanted or not any(route.session.kernels for route in self._routes.values()):
                raise
            refused = f"{WITHOUT}{bundle.directory} {error.reason}"
        if refused:
            self._routes = routes(refused)
            probe.run_probe(bundle, self._routes)

        def image_session(tower: ImageTower, refused: str) -> Callable[[int | None], GraphSession]:
            def session(count: int | None) -> GraphSession:
                return bundle.load_graph(
                    tower.graph,
                    lambda path: open_session(
                        path,
                        name=bundle.directory / tower.graph,
                        device="cpu" if count else device,
                        threads=count or threads,
                        saturation_safe=tower.saturation_safe,
                        form=form,
                        # Bundles of before there were kernels for images stay in float32, whatever texts do.
                        kernels=kernels and tower.kernels is not None,
                        refused=refused,
                        facts=GraphFacts.of_images(self.manifest, tower),
                        options=device_options,
                        spin_microseconds=limits.spin_microseconds,
                    ),
                )

            return session

        def load_images(tower: ImageTower, refused: str = "") -> ImageRoute:
            output = TASKS[self.manifest.task].output
            route = ImageRoute(bundle, tower, image_session(tower, refused), limits, output)
            try:
                probe.run_image_probe(bundle, route)
            except ProbeError as error:
                wanted = device_options is not None and device_options.bfloat16
                if wanted or refused or not route.session.kernels:
                    raise
                return load_images(tower, f"{WITHOUT}{bundle.directory} {error.reason}")
            return route

        self._load_images = load_images
        self._images: ImageRoute | None = None

    def route(self, task: str | None = None) -> LoadedRoute:
        """The route for a task (``query``, ``document``), or the default one. Without routes, tasks have no effect.

        Raises:
            InvalidArgumentError: The model has routes, but not one for the task.
        """
        if task and task not in self._routes and DEFAULT_ROUTE not in self._routes:
            raise InvalidArgumentError(f"No route found for task type {task!r}. Available routes: {self._tasks}")
        default = self.manifest.default_route
        return self._routes.get(task or default) or self._routes[default]

    def route_of_call(self, task: str | None) -> LoadedRoute:
        """The route of a call's texts. Unlike :meth:`route`, it refuses a call that needs a task and has none."""
        check_text("task", task)
        if self.manifest.needs_task and not task:
            raise InvalidArgumentError(
                f"Could not determine route for task={task!r}, modality='text'. Available routes: {self._tasks}. "
                "Consider specifying the `task` parameter in `model.encode`, or setting a default route in the "
                "`Router`. encode_query and encode_document specify it."
            )
        return self.route(task)

    @property
    def _tasks(self) -> str:
        """The routes in the words of the original."""
        *others, last = (f"task={name!r}" for name in self._routes)
        return f"{', '.join(others)} and {last}" if others else last

    @property
    def images(self) -> ImageRoute:
        """The graph of images, which is loaded when it is first used. The manifest says whether there is one.

        Raises:
            ProbeError: It gives other vectors on this machine than where it was exported.
        """
        if self._images is None:
            assert self.manifest.image is not None
            # Two threads may both load it, and one is kept: a lock would be held for ever after a fork.
            self._images = self._load_images(self.manifest.image)
        return self._images

    def trim(self) -> None:
        """Give back unused memory of all graphs."""
        for route in self.routes:
            route.trim()
        if self._images is not None:
            self._images.trim()

    @property
    def max_seq_lengths(self) -> list[int | None]:
        """The limit of each route, in tokens. It can be set."""
        return [route.tokenizer.max_seq_length for route in self.routes]

    @max_seq_lengths.setter
    def max_seq_lengths(self, lengths: Sequence[int | None]) -> None:
        for route, length in zip(self.routes, lengths, strict=True):
            if route.tokenizer.max_seq_length != length:
                route.tokenizer.max_seq_length = length

    @property
    def named_routes(self) -> Mapping[str, LoadedRoute]:
        """All routes by name."""
        return self._routes

    @property
    def routes(self) -> tuple[LoadedRoute, ...]:
        """All routes."""
        return tuple(self._routes.values())
