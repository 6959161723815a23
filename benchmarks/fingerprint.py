"""Time the fingerprint of a base that lies in the page cache, next to reading the base and to hashing all of it.

    python benchmarks/fingerprint.py --folder bench --layers 4      # 4 GB of disk, and as much free memory

The model has the layers of Llama 3.1 8B. Its 32 layers would take 16 GB; here are fewer, and the time for 8.03 billion
parameters is that of as many bytes. The time must be under a second.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from synthetic import Size, make_checkpoint

from dem_hub.checkpoints.fingerprint import fingerprint, tensor_digests
from dem_hub.checkpoints.reader import Checkpoint

# Bytes of Llama 3.1 8B in bf16.
WHOLE = 16.06e9
# Seconds that its fingerprint may take.
BOUND = 1.0
# Bytes that are read at a time.
CHUNK = 1 << 20


def read(checkpoint: Checkpoint) -> None:
    """Read all files into one buffer."""
    buffer = bytearray(CHUNK)
    for file in checkpoint.files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def shortest(action: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Return the shortest time of a few runs, and the least time on all cores together, in seconds."""
    times = []
    on_cores = []
    for _ in range(repeat):
        start = time.perf_counter()
        start_on_cores = time.process_time()
        action()
        times.append(time.perf_counter() - start)
        on_cores.append(time.process_time() - start_on_cores)
    return min(times), min(on_cores)


def main() -> int:
    """Print a table; the exit status is 1 if the fingerprint takes too long."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("bench"), help="where the model is made (default: bench)")
    parser.add_argument("--layers", type=int, default=4, help="of the model (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each (default: %(default)s)")
    options = parser.parse_args()
    size = Size(width=4096, inner=14336, vocabulary=128256, layers=options.layers)
    checkpoint = Checkpoint(make_checkpoint(options.folder / f"llama-{options.layers}", size))
    nbytes = sum(file.stat().st_size for file in checkpoint.files)
    read(checkpoint)  # into the page cache
    actions: dict[str, Callable[[], object]] = {
        "the fingerprint": lambda: fingerprint(tensor_digests(checkpoint)),
        "to read all bytes": lambda: read(checkpoint),
        "the fingerprint, and a hash of all bytes": lambda: fingerprint(tensor_digests(checkpoint, full=True)),
    }
    print("| what | bytes, GB | seconds | on all cores together | GB/s | seconds for 8.03 billion parameters |")
    print("|---|---|---|---|---|---|")
    whole = []
    for name, action in actions.items():
        seconds, on_cores = shortest(action, options.repeat)
        whole.append(seconds * WHOLE / nbytes)
        speed = nbytes / seconds / 1e9
        print(f"| {name} | {nbytes / 1e9:.2f} | {seconds:.3f} | {on_cores:.3f} | {speed:.1f} | {whole[-1]:.2f} |")
    if whole[0] >= BOUND:
        print(f"The fingerprint takes {whole[0]:.2f} seconds, and {BOUND:g} is the bound.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
