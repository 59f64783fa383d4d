"""What the detokenizer costs per token: frame in, text out, frame encoded.

    python -m benchmarks.simulation.detok_cost FOLDER [--streams 256] [--steps 400] [--stop STRING]

FOLDER holds tokenizer.json. Each step is one Tokens frame with one token for each stream, like a decode step. Prints
CPU microseconds per token (median of five rounds), including decoding and encoding of frames.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

from detok_proc.core import DetokCore
from detok_proc.incremental import DecoderFactory
from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.frames import DetokInbound, Open, Tokens, pack_ids
from quartet.wire.ids import Epoch, Handle, Rid, Role

BOOT_ID = 1
SCHEDULER = Source(Role.SCHEDULER, 0, Epoch(1))
SPARE_IDS = 1000


def token_frames(streams: int, steps: int, vocab_size: int) -> list[bytes]:
    """Return the encoded Tokens frames of `steps` decode steps, with random ids."""
    draw = random.Random(0)
    encoder = Encoder(SCHEDULER, BOOT_ID)
    handles = pack_ids(list(range(streams)))
    frames = []
    for step in range(steps):
        ids = pack_ids([draw.randrange(vocab_size - SPARE_IDS) + SPARE_IDS // 2 for _ in range(streams)])
        frames.append(encoder.encode(Tokens(step, handles, pack_ids([step] * streams), ids, [], [])))
    return frames


def round_cost_us(factory: DecoderFactory, streams: int, frames: list[bytes], stop: tuple[str, ...]) -> float:
    """Return CPU microseconds per token over all `frames`."""
    core = DetokCore(factory)
    for handle in range(streams):
        rid = Rid(handle.to_bytes(16, "little"))
        core.handle(SCHEDULER, Open(Handle(handle), rid, 0, 1, "api-0", b"", b"", 0, stop, False, True), 0.0)
    decoder = Decoder[DetokInbound](DetokInbound, BOOT_ID)
    encoder = Encoder(Source(Role.DETOK, 0, Epoch(1)), BOOT_ID)
    started = time.process_time()
    for data in frames:
        source, frame = decoder.decode(data)
        for _destination, answer in core.handle(source, frame, 0.0):
            encoder.encode(answer)
    return (time.process_time() - started) / (len(frames) * streams) * 1e6


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description="Measure the detokenizer's cost per token.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--stop", action="append", default=[])
    chosen = parser.parse_args()
    factory = DecoderFactory(chosen.folder)
    frames = token_frames(chosen.streams, chosen.steps, len(factory.vocabulary))
    cold, *costs = [round_cost_us(factory, chosen.streams, frames, tuple(chosen.stop)) for _ in range(6)]
    print(f"first round, which also fills the table of pieces: {cold:.2f} us/token")
    print(f"{statistics.median(costs):.2f} us/token (median of 5; {min(costs):.2f} to {max(costs):.2f})")


if __name__ == "__main__":
    main()
