"""Parts of a model for programs that plan the runs of many calls themselves, as a server does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stonnx._arguments import check_choice, check_text, check_texts
from stonnx._bundle.manifest import Manifest
from stonnx._engine import probe as bundle_probe
from stonnx._errors import InvalidArgumentError
from stonnx._model.work import Work
from stonnx._results.activations import Activation
from stonnx._results.token_rows import Finish
from stonnx._text.inputs import parse_inputs
from stonnx._text.tokens import Text, Token

if TYPE_CHECKING:
    from stonnx._engine.engine import Engine
    from stonnx._engine.route import LoadedRoute
    from stonnx._tasks import TaskRow


class Servable:
    """Members for :class:`stonnx.Batcher` and ``stonnx serve``."""

    if TYPE_CHECKING:  # of the class that this is mixed into
        _engine: Engine

        @property
        def _row(self) -> TaskRow: ...

        @property
        def _route(self) -> LoadedRoute: ...

        def _resolve_prompt(self, prompt: str | None, prompt_name: str | None) -> str | None: ...

    def work(
        self,
        output: str | None = None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        task: str | None = None,
    ) -> Work:
        """One kind of result of this model, for programs that plan runs themselves, as :class:`stonnx.Batcher` does.

        Args:
            output: An output of the graph, as ``"token_embeddings"`` or ``"logits"``. None: the model's result.
            prompt_name: Name of the prompt to put before each text.
            prompt: The prompt itself; wins over ``prompt_name``.
            task: ``"query"`` or ``"document"``, with the prompts of ``encode_query`` and ``encode_document``.
        """
        activation = self._other_activation() if output is None else None
        if output is None:
            output = self._row.result if activation is None else self._row.output
        check_text("output", output)
        if task is not None:
            check_choice("task", task, ("query", "document"))
        route = self._engine.route_of_call(task)
        if output not in route.session.outputs:
            raise InvalidArgumentError(
                f"This model's graph has no output {output!r}. It has: {', '.join(sorted(route.session.outputs))}."
            )
        resolved = self._resolve_prompt(prompt, self._prompt_name(task, prompt_name, prompt)) or ""
        length = route.excluded_tokens(resolved)
        active = self._kept_dims()
        # Queries and documents of late interaction have different masks, so they do not share a run.
        row_mask = self._row.row_mask
        group = (route, output, length, active, task if row_mask else None, id(activation))
        images = self.manifest.image is not None
        return Work(route, output, resolved, length, active, task, row_mask, self._finish(), group, images, activation)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the bundle."""
        return self._engine.manifest

    def tokens(self, texts: Sequence[Text], add_special_tokens: bool = True) -> list[list[Token]]:
        """The tokens of whole texts, including those that the model would cut off."""
        parsed, _ = parse_inputs(list(check_texts("texts", texts)))
        return self._route.tokenizer.whole(parsed, bool(add_special_tokens))

    def run_probe(self) -> float | None:
        """Run the texts that came with the bundle, and compare the vectors with the exporter's.

        Returns:
            The lowest cosine between them; None for a bundle without a probe.

        Raises:
            ProbeError: The vectors differ by more than the bundle allows, or the model does not run.
        """
        if self._engine.manifest.probe is None:
            return None
        return bundle_probe.compare(self._engine.bundle, self._engine.named_routes)

    @property
    def work_slots(self) -> int:
        """The number of runs of this model side by side: one for each thread on the CPU, one on a GPU."""
        return max(route.parallel_runs for route in self._engine.routes)

    def _prompt_name(self, task: str | None, prompt_name: str | None, prompt: str | None) -> str | None:
        """The name of the prompt of a call."""
        return prompt_name

    def _finish(self) -> Finish:
        """What is done to the vectors of a text's tokens, if these are the result."""
        return Finish()

    def _other_activation(self) -> Activation | None:
        """The function of logits that replaces the one in the graph, if these are the result. None: nothing does."""
        return None

    def _kept_dims(self) -> int | None:
        """How many values of a sparse vector are kept; None: all."""
        return None
