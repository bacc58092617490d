"""Several conversations through one llama.cpp context: ids in, ids out. Knows no messages and no text.

Every step of the one worker takes a token for each reply under way and a stretch of each prompt still to be read
(continuous batching). What a sequence holds stays in the cache when its reply is done:

    head        |system prompt ....|                     read once, in everybody's sequence at no cost
    sequence 2  |system prompt ....|user|reply|user|     a conversation that goes on reads its new words only
    sequence 3  |system prompt ....|user|reply|          the longest unused goes first when room is needed
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from warmline.engine.base import Call, StopReason, common
from warmline.errors import EngineError, ModelError

SEQUENCES = 32
"""Conversations whose words so far may stay in the cache at a time, the heads included. Room may run out before."""
STRETCH = 256
"""Prompt tokens read in one step. More would read a cold prompt no faster and make a cancel wait longer."""
SHARED_STRETCH = 64
"""The same while others are waiting for their next word."""
LIKELIEST = 256
"""Sampling looks at so many tokens at most: what lies behind them has no share in any `top_p` in use."""
WORTH_SHIFTING = 32
"""Tokens. Less is read again sooner than shifted."""
OPENING = 12
"""Tokens. In every chat format the words of a turn begin less far behind the end of the one before."""
ANY_SEED = 0xFFFFFFFF
NO_ROOM = 1


@dataclass(slots=True)
class _Sequence:
    """What the cache holds under one number. Cells below `lent` may belong to another sequence too."""

    number: int
    ids: list[int] = field(default_factory=list)
    adapter: bool = True
    busy: bool = False
    used: int = 0
    lent: int = 0


@dataclass(slots=True)
class _Job:
    ids: list[int]
    limit: int
    ends: frozenset[int]
    quiet: frozenset[int]
    head: int
    call: Call
    out: SimpleQueue[int | StopReason | Exception] = field(default_factory=SimpleQueue)
    sequence: _Sequence | None = None
    sampler: Any = None
    next: list[int] = field(default_factory=list)
    """Ids that the cache does not hold yet."""
    produced: int = 0
    row: int = -1
    """Place of this job's logits in the batch under way."""


def moved(held: Sequence[int], wanted: Sequence[int], start: int) -> tuple[int, int]:
    """Where what is wanted from `start` on stands further back in what is held, and how much of it: (place, length).

    That is so when the oldest turns have been left out of a conversation.

    >>> moved([9, 1, 2, 3, 4, 5], [9, 3, 4, 5, 6], 1)
    (3, 3)
    """
    best = (0, 0)
    if start < len(wanted):
        place = start
        while len(held) - place > best[1]:
            try:
                place = held.index(wanted[start], place + 1)
            except ValueError:
                break
            if (length := common(held[place:], wanted[start:])) > best[1]:
                best = (place, length)
    return best


class SharedContext:
    """A GGUF loaded once, and the worker that replies from it.

    `cells` is how many tokens the cache may hold for all conversations together; one reply needs its prompt and its
    limit at most, and waits until there is room. The cache begins with `begin` cells and is doubled whenever more are
    needed. `adapter` is a GGUF LoRA adapter that can be switched off per reply.

    Raises:
        ModelError: a file cannot be read by llama.cpp, or does not fit into memory.
    """

    def __init__(
        self,
        path: Path,
        *,
        cells: int,
        threads: int,
        adapter: Path | None = None,
        gpu_layers: int = 0,
        begin: int | None = None,
    ):
        self._llama = llama = _library()
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        self._model = llama.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise _unreadable(path)
        settings = llama.llama_context_default_params()
        settings.n_seq_max = SEQUENCES
        settings.n_batch = settings.n_ubatch = 512
        settings.n_outputs_max, settings.n_outputs_max_per_seq = SEQUENCES, 1
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = settings.swa_full = settings.no_perf = True
        self._settings = settings
        self._context: Any = None
        self.cells = cells
        if not self._allocate(min(begin or cells, cells)):
            llama.llama_model_free(self._model)
            raise ModelError(
                f"{path.name} does not fit into memory",
                code="fit-memory",
                hint="lower prompt.context or choose a smaller quantisation",
            )
        self.vocabulary = llama.llama_model_get_vocab(self._model)
        self.tokens = int(llama.llama_vocab_n_tokens(self.vocabulary))
        self._can_shift = bool(llama.llama_memory_can_shift(self._memory))
        self._window = int(llama.llama_model_n_swa(self._model))
        self._adapter = None
        if adapter is not None:
            self._adapter = llama.llama_adapter_lora_init(self._model, str(adapter).encode())
            if not self._adapter:
                llama.llama_free(self._context)
                llama.llama_model_free(self._model)
                raise _unreadable(adapter)
        self._adapted: bool | None = None
        self._shifted = False
        self._batch = llama.llama_batch_init(settings.n_batch, 0, 1)
        # the first two hold the heads, without and with the adapter; they are nobody's and never go
        self._heads = {False: _Sequence(0, adapter=False), True: _Sequence(1, adapter=True)}
        self._sequences = [_Sequence(number) for number in range(2, SEQUENCES)]
        self._waiting: deque[_Job] = deque()
        self._jobs: list[_Job] = []
        self._clock = 0
        self._closed = False
        self._wake = threading.Condition()
        # a daemon, but never left behind: the program's end closes the context, which waits for the step under way
        self._worker = threading.Thread(target=self._work, name="llamacpp", daemon=True)
        self._worker.start()
        atexit.register(self.close)

    @property
    def has_adapter(self) -> bool:
        return self._adapter is not None

    def stream(
        self, ids: list[int], call: Call, *, limit: int, ends: frozenset[int], quiet: frozenset[int], head: int = 0
    ) -> Generator[int, None, None]:
        """Yield up to `limit` ids that follow `ids`; fills `call.usage`. May be called by many threads.

        `ends` close the reply and are not yielded. `quiet` ids are left out of the repetition penalty. The first
        `head` ids are what every conversation begins with.

        Raises:
            EngineError: the context is closed, or llama.cpp failed.
        """
        job = _Job(ids, limit, ends, quiet, head, call)
        with self._wake:
            if self._closed:
                raise EngineError("the engine is closed", code="engine-failed")
            self._waiting.append(job)
            self._wake.notify()
        try:
            while True:
                try:
                    found = job.out.get(timeout=0.05)
                except Empty:
                    if call.cancel.is_set():
                        call.usage.stop_reason = "cancelled"
                        return
                    continue
                if isinstance(found, int):
                    yield found
                elif isinstance(found, Exception):
                    raise found
                else:
                    call.usage.stop_reason = found
                    return
        finally:
            call.cancel.set()

    def head_state(self, ids: list[int]) -> bytes:
        """What the cache holds of the head `ids`, with the adapter if there is one; nothing if it is not that head."""
        llama, head = self._llama, self._heads[self.has_adapter]
        with self._wake:
            size = llama.llama_state_seq_get_size(self._context, head.number) if head.ids == ids else 0
            buffer = (ctypes.c_uint8 * size)()
            written = llama.llama_state_seq_get_data(self._context, buffer, size, head.number) if size else 0
            return memoryview(buffer)[:written].tobytes()

    def set_head_state(self, ids: list[int], state: Any) -> bool:
        """Put back what `head_state` gave for the head `ids`; False if llama.cpp does not take it."""
        head = self._heads[self.has_adapter]
        with self._wake:
            place = (ctypes.c_uint8 * len(state)).from_buffer(state)
            if self._llama.llama_state_seq_set_data(self._context, place, len(state), head.number):
                head.ids = list(ids)
            return bool(head.ids)

    def spelling(self, token: int) -> bytes:
        """The bytes of one token, perhaps part of a character; none for a control token."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            written = int(self._llama.llama_token_to_piece(self.vocabulary, token, buffer, size, 0, False))
            if written >= 0:
                return buffer.raw[:written]
            size = -written

    def close(self) -> None:
        """End every reply and free the model. May be called twice."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._worker.join()
        atexit.unregister(self.close)

    # ------------------------------------------------------------------ the worker

    def _work(self) -> None:
        ending: StopReason | Exception = "cancelled"
        try:
            while self._step():
                pass
        except BaseException as error:  # a fault of ours must not leave readers waiting
            self._fail(type(error).__name__)
            ending = _failed(type(error).__name__)
        finally:
            with self._wake:
                self._closed = True
            for job in [*self._jobs, *self._waiting]:
                self._finish(job, ending)
            self._llama.llama_batch_free(self._batch)
            if self._context:
                self._llama.llama_free(self._context)
            self._llama.llama_model_free(self._model)

    def _step(self) -> bool:
        with self._wake:
            while not self._closed and not self._jobs and not self._waiting:
                self._wake.wait()
            if self._closed:
                return False
            waiting = [job for job in self._waiting if not job.call.cancel.is_set()]
            for job in self._waiting:
                if job.call.cancel.is_set():
                    job.out.put("cancelled")
            self._waiting = deque(waiting)
        for job in [job for job in self._jobs if job.call.cancel.is_set()]:
            self._finish(job, "cancelled")
        while self._waiting and self._admit(self._waiting[0]):
            with self._wake:
                self._jobs.append(self._waiting.popleft())
        if not self._jobs:
            return True
        taken = self._fill()
        result = self._llama.llama_decode(self._context, self._batch)
        if result == NO_ROOM:
            for sequence in self._sequences:
                if not sequence.busy:
                    self._remove(sequence, 0)
            result = self._llama.llama_decode(self._context, self._batch)
        if result != 0:
            self._fail(result)
            return True
        self._shifted = False
        for job, count in taken:
            assert job.sequence is not None
            job.sequence.ids += job.next[:count]
            del job.next[:count]
            if job.row >= 0:
                self._draw(job)
        return True

    def _fill(self) -> list[tuple[_Job, int]]:
        """Put this step's tokens into the batch; returns how many of which job."""
        batch, place, taken = self._batch, 0, []
        alone = len(self._jobs) == 1
        budget = STRETCH if alone else SHARED_STRETCH
        # Replies under way first, then prompts in the order they came.
        for job in sorted(self._jobs, key=lambda job: job.produced == 0):
            count = 1 if job.produced else min(len(job.next), budget)
            if not count:
                continue
            budget -= 0 if job.produced else count
            assert job.sequence is not None
            start = len(job.sequence.ids)
            for offset in range(count):
                batch.token[place] = job.next[offset]
                batch.pos[place] = start + offset
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = job.sequence.number
                batch.logits[place] = 0
                place += 1
            job.row = -1
            if count == len(job.next):
                batch.logits[place - 1] = 1
                job.row = place - 1
            taken.append((job, count))
        batch.n_tokens = place
        return taken

    def _draw(self, job: _Job) -> None:
        assert job.sequence is not None
        if job.produced == 0:
            self._keep_head(job)
        token = int(self._llama.llama_sampler_sample(job.sampler, self._context, job.row))
        if token in job.ends:
            self._finish(job, "stop")
            return
        job.produced += 1
        job.call.usage.completion_tokens = job.produced
        job.next = [token]
        job.out.put(token)
        if job.produced >= job.limit:
            self._finish(job, "length")

    def _finish(self, job: _Job, reason: StopReason | Exception) -> None:
        if job in self._jobs:
            self._jobs.remove(job)
        if job.sampler is not None:
            self._llama.llama_sampler_free(job.sampler)
            job.sampler = None
        if job.sequence is not None:
            job.sequence.busy = False
        job.out.put(reason)

    def _fail(self, cause: object) -> None:
        """Tell every reply under way, and begin anew with an empty cache: nobody knows what it holds now."""
        for job in list(self._jobs):
            self._finish(job, _failed(cause))
        if self._context:
            self._llama.llama_memory_clear(self._memory, False)
        for sequence in (*self._heads.values(), *self._sequences):
            sequence.ids, sequence.lent = [], 0
        self._shifted = False

    # ------------------------------------------------------------------ the cache

    def _admit(self, job: _Job) -> bool:
        """Find the job a sequence that holds as much of its prompt as possible; False while there is no room."""
        adapter = job.call.options.adapter and self.has_adapter
        idle = [s for s in self._sequences if not s.busy]
        if not idle or (self._jobs and adapter != self._adapted):
            return False  # the adapter is on or off for a whole batch
        held = [s for s in (*self._heads.values(), *self._sequences) if s.adapter == adapter and s.ids]
        source = max(held, key=lambda s: self._held(s, job.ids), default=None)
        target, place, length = self._continued(job, [s for s in idle if s.adapter == adapter])
        if target is None:
            target = min(idle, key=lambda s: (bool(s.ids), s.used))
        if not self._make_room(job, adapter, target, [s for s in idle if s is not target and s is not source]):
            return False
        if adapter != self._adapted:
            self._switch(adapter)
        kept = self._held(target, job.ids) if target.adapter == adapter else 0
        if length:
            kept = job.head
            self._remove(target, place + length)
            self._llama.llama_memory_seq_rm(self._memory, target.number, kept, place)
            self._llama.llama_memory_seq_add(self._memory, target.number, place, -1, kept - place)
            target.ids[kept:place] = []
            self._shifted = True
            kept += length
        elif source is not None and source is not target and (found := self._held(source, job.ids)) > kept:
            self._remove(target, 0)
            kept = found
            self._llama.llama_memory_seq_cp(self._memory, source.number, target.number, 0, kept)
            target.ids = job.ids[:kept]
            source.lent, target.lent = max(source.lent, kept), kept
        kept = self._remove(target, min(kept, len(job.ids) - 1))
        self._clock += 1
        target.adapter, target.busy, target.used = adapter, True, self._clock
        job.sequence, job.next, job.sampler = target, job.ids[kept:], self._sampler(job)
        job.call.usage.prompt_tokens, job.call.usage.cached_tokens = len(job.ids), kept
        return True

    def _continued(self, job: _Job, idle: list[_Sequence]) -> tuple[_Sequence | None, int, int]:
        """The sequence whose conversation this job goes on with, if one does: most of its own words stay.

        With it comes what has to move because the oldest turns were left out: (sequence, place, length).
        """
        best: tuple[_Sequence | None, int, int] = (None, 0, 0)
        most = 0
        for sequence in idle:
            kept = common(sequence.ids, job.ids)
            if kept < job.head or not sequence.ids:
                continue
            kept = self._held(sequence, job.ids)
            place, length = moved(sequence.ids, job.ids, job.head) if self._can_shift and job.head else (0, 0)
            # only whole turns: what goes must end with a turn's end and the opening of the next
            whole = any(token in job.quiet for token in sequence.ids[max(job.head, place - OPENING) : place])
            whole = whole and self._whole(sequence, place, place + length)
            if length < max(WORTH_SHIFTING, kept - job.head) or place < sequence.lent or not whole:
                place = length = 0
            stay, own = max(kept - job.head, length), len(sequence.ids) - job.head
            if stay > most and (2 * stay >= own or length):
                best, most = (sequence, place, length), stay
        return best

    def _held(self, sequence: _Sequence, ids: list[int]) -> int:
        """How many of these ids can be taken from a sequence. The last is read anew: its logits choose a word."""
        kept = min(common(sequence.ids, ids), len(ids) - 1)
        return kept if self._whole(sequence, 0, kept) else 0

    def _whole(self, sequence: _Sequence, start: int, end: int) -> bool:
        """Whether the cache still holds all from `start` on that a token at `end` looks at.

        Layers that look back over a sliding window let go, when others need cells, what their own sequence will not
        look at any more; one that takes over its beginning would.
        """
        first = int(self._llama.llama_memory_seq_pos_min(self._memory, sequence.number))
        return first == 0 or 0 < first <= end - self._window >= start

    def _remove(self, sequence: _Sequence, start: int) -> int:
        """Forget what a sequence holds from `start` on; returns where it ends now, 0 if it could only go whole."""
        if not self._llama.llama_memory_seq_rm(self._memory, sequence.number, start or -1, -1):
            self._llama.llama_memory_seq_rm(self._memory, sequence.number, -1, -1)
            start = 0
        del sequence.ids[start:]
        sequence.lent = min(sequence.lent, start)
        return start

    def _make_room(self, job: _Job, adapter: bool, target: _Sequence, spare: list[_Sequence]) -> bool:
        """Grow the cache, or forget the longest unused conversations, until the job fits beside those under way."""

        def own(ids: list[int], adapter: bool) -> int:
            return len(ids) - common(ids, self._heads[adapter].ids)

        needed = sum(len(head.ids) for head in self._heads.values())
        needed += sum(own(j.ids, adapter) + j.limit for j in (*self._jobs, job))
        held = {s.number: own(s.ids, s.adapter) for s in self._sequences if not s.busy and s is not target}
        wanted = needed + sum(held.values())
        # what was shifted is moved in the next step; before it, its state is half of each
        if self._room < min(wanted, self.cells) and (self._shifted or not self._grow(wanted)):
            return False
        free = self._room - needed
        for sequence in sorted(spare, key=lambda s: s.used):
            if sum(held.values()) <= free:
                break
            held.pop(sequence.number)
            self._remove(sequence, 0)
        return sum(held.values()) <= free or not self._jobs

    def _allocate(self, cells: int) -> bool:
        """Make the context anew with so many cells."""
        self._settings.n_ctx = cells
        self._context = self._llama.llama_init_from_model(self._model, self._settings)
        if self._context:
            self._memory = self._llama.llama_get_memory(self._context)
            self._room = int(self._llama.llama_n_ctx(self._context))
        return bool(self._context)

    def _grow(self, needed: int) -> bool:
        """Double the cache until it holds what is needed, or all it may. What it holds stays, else False."""
        llama, room, wanted = self._llama, self._room, self._room
        while wanted < min(needed, self.cells):
            wanted *= 2
        size = llama.llama_state_get_size(self._context)
        try:
            state = (ctypes.c_uint8 * size)()
        except MemoryError:  # nothing is lost yet
            self.cells = room
            return True
        size = llama.llama_state_get_data(self._context, state, size)
        llama.llama_free(self._context)  # first, so that there are never two of them
        if not self._allocate(min(wanted, self.cells)):
            self.cells = room
            if not self._allocate(room):
                raise MemoryError
        if self._adapted is not None:
            self._switch(self._adapted)
        if llama.llama_state_set_data(self._context, state, size):
            return True
        self._fail("its cache could not be moved")
        return False

    def _keep_head(self, job: _Job) -> None:
        """The first prompt that holds it leaves the head behind for all that follow."""
        assert job.sequence is not None
        head = self._heads[job.sequence.adapter]
        if job.head and head.ids != job.ids[: job.head] and self._whole(job.sequence, 0, job.head):
            self._remove(head, 0)
            self._llama.llama_memory_seq_cp(self._memory, job.sequence.number, head.number, 0, job.head)
            head.ids = job.ids[: job.head]
            job.sequence.lent = max(job.sequence.lent, job.head)

    def _switch(self, adapter: bool) -> None:
        if self._adapter is not None:
            one = (self._llama.llama_adapter_lora_p_ctypes * 1)(self._adapter)
            self._llama.llama_set_adapters_lora(self._context, one, int(adapter), (ctypes.c_float * 1)(1.0))
        self._adapted = adapter

    def _sampler(self, job: _Job) -> Any:
        llama, options = self._llama, job.call.options
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())

        def add(sampler: Any) -> None:
            llama.llama_sampler_chain_add(chain, sampler)

        if options.repetition_penalty > 1:
            # A penalty only lowers what was said, so the likeliest after it are among these. Half of the time it takes
            # to draw a token is the penalty looking at the whole vocabulary.
            keep = 1 if options.temperature <= 0 else LIKELIEST
            add(llama.llama_sampler_init_top_k(keep + len(set(job.ids)) + job.limit))
        if options.repetition_penalty != 1:
            add(llama.llama_sampler_init_penalties(self.tokens, self.cells, options.repetition_penalty, 0.0, 0.0))
        if options.temperature <= 0:
            add(llama.llama_sampler_init_greedy())
        else:
            add(llama.llama_sampler_init_top_k(LIKELIEST))
            add(llama.llama_sampler_init_temp(options.temperature))
            add(llama.llama_sampler_init_top_p(options.top_p, 1))
            add(llama.llama_sampler_init_dist(ANY_SEED if options.seed is None else options.seed % ANY_SEED))
        if options.repetition_penalty != 1:
            for token in job.ids:
                if token not in job.quiet:
                    llama.llama_sampler_accept(chain, token)
        return chain


def _failed(cause: object) -> EngineError:
    return EngineError(f"llama.cpp failed while replying ({cause})", code="engine-failed")


_SILENT: list[Any] = []


def _library() -> Any:
    """llama.cpp, with its log switched off.

    Raises:
        ModelError: it is not installed.
    """
    try:
        llama = importlib.import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError):
        raise ModelError(
            "llama-cpp-python is not installed, or its library does not load",
            code="dependency-missing",
            hint="install a C++ compiler, then `pip install llama-cpp-python`; or use --engine local",
        ) from None
    if not _SILENT:
        _SILENT.append(llama.llama_log_callback(lambda *_: None))  # kept: C holds no reference
        llama.llama_log_set(_SILENT[0], ctypes.c_void_p(0))
        llama.llama_backend_init()
    return llama


def _unreadable(path: Path) -> ModelError:
    if not path.exists():
        return ModelError(f"{path} does not exist", code="gguf-damaged", hint="export the run again")
    return ModelError(
        f"{path.name} cannot be read by llama.cpp",
        code="gguf-damaged",
        where=str(path),
        hint="export it again; is llama-cpp-python new enough for its architecture?",
    )
