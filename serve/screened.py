"""One generation, of which a reader sees what the content filter has approved."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from tinycluster.cluster.generation import Delta
from tinycluster.serve.choices import Deltas
from tinycluster.serve.content_filter import Screen


class Screened:
    """Deltas come later, in their order, each as soon as all of its text is approved. A refused text ends with the
    finish reason content_filter, and nothing that was not approved is shown of it.

    `is_held` keeps everything to the end: where token ids and log-probabilities are shown, which are known before their
    text is, and where the answer is sent as a whole. `counted` is told of every delta when it comes.
    """

    def __init__(self, generation: Deltas, screen: Screen, counted: Callable[[Delta], None], *, is_held: bool) -> None:
        self._generation, self._screen, self._counted, self._is_held = generation, screen, counted, is_held
        self._waiting: deque[tuple[Delta, int]] = deque()
        """Each with the length of the text at its end."""

    @property
    def scheduled_s(self) -> float | None:
        return self._generation.scheduled_s

    def abort(self) -> None:
        self._generation.abort()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        pieces: list[str] = []
        text = ""
        async for delta in self._generation:
            self._counted(delta)
            is_end = delta.finish_reason is not None
            if delta.finish_reason in ("abort", "error") or not (delta.text or delta.token_ids or is_end):
                # The engine has failed, or this tells of the prompt.
                yield delta
                continue
            pieces.append(delta.text)
            if self._is_held and not is_end:
                self._waiting.append((delta, 0))
                continue
            text = "".join([text, *pieces])
            pieces.clear()
            self._waiting.append((delta, len(text)))
            num_approved = await self._screen.approve(text, is_whole=is_end)
            if num_approved is None:
                self._generation.abort()
                yield Delta((), "", "content_filter")
                return
            for approved in self._approved(num_approved, is_end):
                yield approved

    def _approved(self, num_chars: int, is_end: bool) -> Iterator[Delta]:
        while self._waiting and (is_end or self._waiting[0][1] <= num_chars):
            yield self._waiting.popleft()[0]
