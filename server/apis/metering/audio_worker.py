"""A process that decodes one audio file, which may do with a decoder whatever it was made for: `audio` runs it.

``python -P audio_worker.py measure|recognize FD SECONDS`` reads the file from a descriptor and prints a JSON document:
what was asked, or the ``error`` of a file that cannot be decoded. It takes at most so much CPU time, and ends as soon
as its standard input does: with the server, which has the other end. It is run as a file, without the packages around
it, so that it starts at once.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

import av

if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer

_FORMATS = {
    "flac": "flac",
    "matroska,webm": "webm",
    "mov,mp4,m4a,3gp,3g2,mj2": "m4a",
    "mp3": "mp3",
    "ogg": "ogg",
    "wav": "wav",
}
"""What may be opened, by FFmpeg's name: of its others, some refer to further files and addresses."""
_CODECS = (
    *("aac", "alac", "flac", "mp3", "mp3float", "opus", "vorbis"),
    *("pcm_alaw", "pcm_f32le", "pcm_f64le", "pcm_mulaw", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_u8"),
)
_MAX_MEMORY = 1 << 30
_MAX_SECONDS = 86_400
"""Of audio: the most that a file may hold."""
_PADDING = Fraction(1, 10)
"""Seconds that encoders may add to fill their last frame; they count where the file does not say that they do not."""
_UTTERANCE_SECONDS = 30
"""After so much speech without a pause an utterance ends, wherever that is: it takes memory as long as it goes on."""
_NICE = 10


def measure(file: BinaryIO) -> dict[str, Any]:
    """How long a file plays, in ``hundredths`` of a second, and its ``format``, as file names end on it."""
    with _opened(file) as container:
        samples: Counter[int] = Counter()  # by rate
        for frame in _frames(container):
            samples[frame.sample_rate] += frame.samples
            if samples[frame.sample_rate] > _MAX_SECONDS * frame.sample_rate:
                raise ValueError("too long")
        seconds = sum((Fraction(count, rate) for rate, count in samples.items()), Fraction())
        if container.duration is not None:
            told = Fraction(container.duration, av.time_base)
            if 0 < seconds - told < _PADDING:
                seconds = told
        if not seconds:
            raise ValueError("empty")
        return {"hundredths": round(seconds * 100), "format": _FORMATS[container.format.name]}


def recognize(file: BinaryIO) -> dict[str, Any]:
    """The words of an English file."""
    from pocketsphinx import Decoder, Endpointer  # type: ignore[import-untyped]  # it has no types

    endpointer = Endpointer()
    decoder = Decoder(samprate=float(endpointer.sample_rate), loglevel="FATAL")
    longest = int(_UTTERANCE_SECONDS / endpointer.frame_length)
    texts: list[str] = []
    length = 0
    for frame in _pcm(file, endpointer.sample_rate, endpointer.frame_bytes):
        speech = endpointer.process(frame)
        if speech is None:
            continue
        if length == 0:
            decoder.start_utt()
        decoder.process_raw(speech)
        length += 1
        if not endpointer.in_speech or length == longest:
            decoder.end_utt()
            length = 0
            if hypothesis := decoder.hyp():
                texts.append(hypothesis.hypstr)
    return {"text": " ".join(texts)}


def _pcm(file: BinaryIO, rate: int, size: int) -> Iterator[bytes]:
    """The file as 16-bit samples of one channel, ``size`` bytes at a time, and so much silence that all speech ends."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    rest = bytearray()
    with _opened(file) as container:
        for frame in chain(_frames(container), [None]):
            for resampled in resampler.resample(frame):
                rest += memoryview(resampled.planes[0])[: resampled.samples * 2]
            whole = len(rest) - len(rest) % size
            yield from (bytes(rest[at : at + size]) for at in range(0, whole, size))
            del rest[:whole]
    rest += bytes(2 * rate)
    yield from (bytes(rest[at : at + size]) for at in range(0, len(rest) - size, size))


def _opened(file: BinaryIO) -> InputContainer:
    options = {
        "format_whitelist": ",".join(_FORMATS),
        "codec_whitelist": ",".join(_CODECS),
        "protocol_whitelist": "",
    }
    return av.open(file, "r", options=options, metadata_errors="ignore")


def _frames(container: InputContainer) -> Iterator[AudioFrame]:
    """What can be decoded of the first track; what is broken between is left out, as players do."""
    for packet in container.demux(container.streams.audio[0]):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue


def _end_with_server() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _main(command: str, descriptor: str, seconds: str) -> None:
    threading.Thread(target=_end_with_server, daemon=True).start()
    os.nice(_NICE)
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, int(seconds)),
        (resource.RLIMIT_DATA, _MAX_MEMORY),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, allowed = resource.getrlimit(limit)
        least = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(limit, (least, least))
    with os.fdopen(int(descriptor), "rb") as file:
        file.seek(0)
        try:
            result = _COMMANDS[command](file)
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001  # decoders raise all sorts: it is the file's fault
            result = {"error": f"{type(error).__name__}: {error}"}
    json.dump(result, sys.stdout)


_COMMANDS = {"measure": measure, "recognize": recognize}

if __name__ == "__main__":
    _main(*sys.argv[1:])
