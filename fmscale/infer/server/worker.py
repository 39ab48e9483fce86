"""The model of a server: a thread of its own, which answers the requests one after another.

Continuous batching would take the place of `ModelWorker._run`: requests would join the sequences that grow.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from fmscale.errors import FmscaleError
from fmscale.infer.answer import ChatModel, ChatReply
from fmscale.infer.products import packed
from fmscale.infer.server.api import ApiError, ChatRequest, Limits

FAILURE = ApiError("The server failed at this request", remedy="Its log has the cause.", status=500)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Replies:
    """The end of a request."""

    prompt_tokens: int
    """Tokens that the model read."""
    answers: list[ChatReply]


Event = tuple[int, str] | Replies | ApiError
"""Text of an answer (its number, whole characters), or the last event."""


@dataclass(kw_only=True, eq=False)
class ChatJob:
    """A request on its way through the worker."""

    request: ChatRequest
    tell: Callable[[Event], None]
    """Called in the worker's thread."""
    deadline: float
    """time.monotonic() at which its answer is cut."""
    gone: threading.Event = field(default_factory=threading.Event)
    """Set as soon as nobody reads the answer any more."""


class ModelWorker:
    """Thread that owns the model."""

    def __init__(self, model: ChatModel, limits: Limits, threads: int | None = None) -> None:
        self._model, self._limits, self._threads = model, limits, threads
        self._queue = deque[ChatJob]()
        self._changed = threading.Condition()
        self._closed, self._end = False, math.inf
        self.running = self.tokens = 0
        """Requests that are being answered, and tokens of all answers that have ended."""
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(not job.gone.is_set() for job in tuple(self._queue))

    def submit(self, request: ChatRequest, tell: Callable[[Event], None]) -> ChatJob:
        """Put a request at the end of the queue. Raises ApiError with status 429 if the queue is full."""
        job = ChatJob(request=request, tell=tell, deadline=time.monotonic() + self._limits.seconds)
        with self._changed:
            self._queue = deque(other for other in self._queue if not other.gone.is_set())
            if (waiting := len(self._queue)) >= self._limits.waiting:
                cause, remedy = "Too many requests wait for the model", "Ask again later."
                raise ApiError(cause, found=waiting, remedy=remedy, status=429, code="queue_full")
            self._queue.append(job)
            self._changed.notify()
        return job

    def end_by(self, moment: float) -> None:
        """Cut and refuse after this time.monotonic() as at a job's own deadline. Signal handlers may call it."""
        self._end = moment

    def close(self) -> None:
        """Cut the answer that is being made, drop the queue, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with packed(self._model.trained.model):
            while (job := self._next()) is not None:
                if not job.gone.is_set():
                    job.tell(self._answered(job))
                self.running = 0

    def _next(self) -> ChatJob | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue)
            if self._closed:
                return None
            self.running = 1
            return self._queue.popleft()

    def _answered(self, job: ChatJob) -> Replies | ApiError:
        try:
            return self._answer(job)
        except ApiError as error:
            return error
        except FmscaleError as error:
            return ApiError(error.cause, found=error.found, remedy=error.remedy, param="messages")
        except Exception:
            log.exception("A request failed")
            return FAILURE

    def _answer(self, job: ChatJob) -> Replies:
        request, late = job.request, "The time of the request was over before its answer began"
        if self._late(job):
            raise ApiError(late, found=f"{self._limits.seconds:g} s", remedy="Ask again later.", status=503)
        prompt = self._model.prompt(request.messages)
        room = self._model.context - len(prompt)
        if room < (request.max_tokens if request.room else 1):
            asked = f" and {request.max_tokens} for the answer" if request.room else ""
            raise ApiError(
                "The messages are longer than the model's context",
                found=f"{len(prompt)} tokens{asked}, of {self._model.context}",
                remedy="Send fewer or shorter messages" + (", or ask for fewer tokens." if request.room else "."),
                param="messages",
                code="context_length_exceeded",
            )
        answers = self._model.answers(
            prompt,
            max_tokens=min(request.max_tokens, room),
            sampling=request.sampling,
            stop=request.stop,
            count=request.answers,
            threads=self._threads,
            on_text=lambda number, text: job.tell((number, text)),
            cancelled=lambda: self._closed or job.gone.is_set() or self._late(job),
        )
        self.tokens += sum(answer.tokens for answer in answers)
        return Replies(prompt_tokens=len(prompt), answers=answers)

    def _late(self, job: ChatJob) -> bool:
        return time.monotonic() > min(job.deadline, self._end)
