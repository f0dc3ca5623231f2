"""Speech to text for tokens: check, reserve, transcribe, and settle or give back (contracts/metering.md)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ....storage.documents import encode
from ...errors import ApiError, BadRequest, Problem, ServiceUnavailable
from ...keys import CONFIG
from ...request import Answer
from .access import PER_KEY, licensee
from .answering import once
from .api import api
from .audio import InvalidAudio, measure
from .engine import TranscriptionFailed
from .engines import make
from .ledger import LEDGER, AlreadyDone
from .uploads import INVALID, MAX_BODY, received
from .usage import event
from .workers import Workers

if TYPE_CHECKING:
    from typing import BinaryIO

    from ...config import MeteringConfig
    from ...idempotency import Once
    from ...request import ApiRequest
    from .access import Licensee
    from .audio import Audio
    from .documents import Reservation
    from .engine import Engine
    from .uploads import Upload

log = logging.getLogger(__name__)

_UPLOADS = 8
"""Files that may be on their way for each that may be transcribed: slow senders keep nobody from it."""
_UPLOADS_EACH = 4
"""Of one profile's."""
_RETRY_SECONDS = 5
_MODEL = re.compile(r"[!-~]{1,100}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,3}")
"""BCP 47, nearly."""


class Places:
    """So many at a time, and so many of one profile's (``each``)."""

    def __init__(self, most: int, each: int) -> None:
        self._free = most
        self._each = each
        self._taken: Counter[str] = Counter()

    def check(self, user_id: str) -> None:
        """Raises `ServiceUnavailable` where all are taken."""
        if not self._free or self._taken[user_id] >= self._each:
            raise ServiceUnavailable("Too many transcriptions at a time; try again", retry_after=_RETRY_SECONDS)

    @contextmanager
    def take(self, user_id: str) -> Iterator[None]:
        """Takes one while the context lasts. Raises as `check` does."""
        self.check(user_id)
        self._free -= 1
        self._taken[user_id] += 1
        try:
            yield
        finally:
            self._free += 1
            self._taken[user_id] -= 1
            if not self._taken[user_id]:
                del self._taken[user_id]


class Transcriber:
    """An application's engine, and who may use it at a time."""

    def __init__(self, config: MeteringConfig) -> None:
        self._config = config.transcription
        self._workers = Workers(self._config.max_concurrent)
        self.engine = make(self._config, self._workers)
        most = self._config.max_concurrent
        self.places = Places(most, most)
        self.uploads = Places(most * _UPLOADS, most * _UPLOADS_EACH)

    async def close(self) -> None:
        if self.engine is not None:
            await self.engine.close()
        self._workers.close()

    async def measure(self, file: BinaryIO) -> Audio:
        """Raises `BadRequest` for what is no audio, and `ServiceUnavailable` where the machine has no time to tell."""
        try:
            return await measure(self._workers, file)
        except TimeoutError as error:
            raise ServiceUnavailable(retry_after=_RETRY_SECONDS) from error
        except InvalidAudio as error:
            raise BadRequest(INVALID) from error

    async def transcribe(self, engine: Engine, file: BinaryIO, audio: Audio, fields: tuple[str, str]) -> str:
        """Raises `ApiError` 500 where the engine fails or takes too long, and `BadRequest` for what is no audio."""
        try:
            async with asyncio.timeout(self._config.timeout):
                return await engine.transcribe(file, audio, *fields)
        except TimeoutError:
            log.warning("a transcription took more than %d seconds", self._config.timeout)
        except InvalidAudio as error:
            raise BadRequest(INVALID) from error
        except TranscriptionFailed as error:
            log.error("a transcription failed: %s", error)
        raise _failed()


TRANSCRIBER = web.AppKey("metering_transcriber", Transcriber)
"""Set when the application starts."""


@asynccontextmanager
async def transcribing(app: web.Application) -> AsyncIterator[None]:
    """The application's `TRANSCRIBER`."""
    transcriber = app[TRANSCRIBER] = Transcriber(app[CONFIG].apis.metering)
    try:
        yield
    finally:
        await transcriber.close()


@api.post(
    "/api/desktop/transcribe",
    body="metering#/$defs/TranscribeForm",
    content_types=("multipart/form-data",),
    streamed=True,
    reads={"headers": "headers#/$defs/Once"},
    returns={200: "metering#/$defs/TranscribeResponse"},
    errors=(402, 409, 422),
    auth=licensee,
    limits=(PER_KEY,),
    max_body=MAX_BODY,
)
async def transcribe(request: ApiRequest) -> Answer:
    """Turns speech to text, for tokens.

    A client that goes away meanwhile has it charged all the same, and gets it when it asks again with the same
    ``Idempotency-Key``.
    """
    caller: Licensee = request.caller
    transcriber = request.app[TRANSCRIBER]
    engine = transcriber.engine
    if engine is None:
        raise ApiError("Transcription is not configured", status=503)
    transcriber.places.check(caller.user_id)
    if not request.raw.can_read_body:
        raise BadRequest(INVALID)
    with transcriber.uploads.take(caller.user_id):
        async with received(request.raw, ("model", "language")) as upload:
            fields = _fields(upload, engine)

            async def act(once: Once) -> Answer:
                with transcriber.places.take(caller.user_id):
                    return await _transcribe(request, engine, upload.file, fields, once)

            return await once(request, encode([upload.sha256, *fields]), act)


def _fields(upload: Upload, engine: Engine) -> tuple[str, str]:
    """Model and language. Raises `BadRequest`."""
    model, language = upload.fields.get("model", "whisper-1"), upload.fields.get("language", "en")
    problems = []
    if not _MODEL.fullmatch(model):
        problems.append(Problem(("model",), "must be 1 to 100 characters without spaces"))
    if not _LANGUAGE.fullmatch(language):
        problems.append(Problem(("language",), "must be a language's tag such as en"))
    elif not engine.speaks(language):
        problems.append(Problem(("language",), "must be en: this server knows no other"))
    if problems:
        raise BadRequest(problems=problems)
    return model, language


async def _transcribe(
    request: ApiRequest, engine: Engine, file: BinaryIO, fields: tuple[str, str], once: Once
) -> Answer:
    caller: Licensee = request.caller
    config = request.config.apis.metering
    ledger = request.app[LEDGER]
    transcriber = request.app[TRANSCRIBER]
    audio = await transcriber.measure(file)
    seconds = audio.seconds(whole=config.whole_seconds)
    tokens = audio.cost(config.tokens_per_minute)
    reservation = await ledger.reserve(caller.user_id, tokens, f"Transcription of {seconds:,} seconds")
    try:
        text = await transcriber.transcribe(engine, file, audio, fields)
        answer = _transcribed(text, seconds, reservation)
        used = event("transcription", reservation, seconds, request.now)
        await once.finish(ledger.settle(reservation, [used, *once.remember(answer)]))
    except AlreadyDone as error:
        log.error("a transcription took so long that its tokens were given back")
        raise _failed() from error
    except BaseException:
        await asyncio.shield(ledger.release(reservation))
        raise
    return answer


def _transcribed(text: str, seconds: float, reservation: Reservation) -> Answer:
    document: dict[str, Any] = {
        "success": True,
        "text": text,
        "duration_seconds": seconds,
        "tokens_used": reservation.tokens,
        "tokens_balance": reservation.tokens_balance,
        "transaction_id": reservation.transaction_id,
    }
    return Answer(document)


def _failed() -> ApiError:
    return ApiError("Transcription failed")
