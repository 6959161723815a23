"""From an empty cache to a merged model in memory, compared with plain `from_pretrained`: downloads, checks and the merge.

The Hub is that of the tests, on this machine, and takes time of the same cores. With `--rate` it sends each file no faster
than so many megabytes a second, as a network does. Without, the network costs next to nothing, and what dem_hub does
beside downloading shows. Each run is a process of its own with an empty cache. Runs take turns, the first of each is
not timed, and medians count; imports are not timed.

    python benchmarks/from_hub.py --folder peers              # the inputs of peers.py; they are made if they are not there
    python benchmarks/from_hub.py --folder peers --rate 125   # a line of 1 Gbit/s
"""

import argparse
import shutil
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from peers import OURS, PLAIN, SIZE
from processes import run
from synthetic import make_adapter, make_checkpoint

ROOT = Path(__file__).resolve().parents[1]
DOWNLOAD = """
import sys, time
from huggingface_hub import snapshot_download
start = time.perf_counter()
for repository in sys.argv[1:]:
    snapshot_download(repository)
print(time.perf_counter() - start)
"""


@contextmanager
def served(folders: dict[str, Path], rate: float | None) -> Iterator[dict[str, str]]:
    """Serve folders as repositories, and yield the variables of the environment with which they are found.

    A file is sent at `rate` bytes a second, or as fast as it goes.
    """
    sys.path.insert(0, str(ROOT))
    from tests.fake_hub.server import Hub

    hub = Hub(rate=rate)
    hub.start()
    from huggingface_hub import HfApi, constants

    constants.HF_HUB_DISABLE_XET = True  # this Hub keeps no chunks
    api = HfApi(hub.endpoint, token=hub.user.token)
    for name, folder in folders.items():
        api.create_repo(name)
        api.upload_folder(repo_id=name, folder_path=folder)
    try:
        yield {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    finally:
        hub.stop()


def main() -> None:
    """Make the inputs if they do not exist, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder for checkpoints; they are kept")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rate", type=float, help="megabytes a second (default: as fast as it goes)")
    parser.add_argument("--layers", type=int, default=SIZE.layers)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    base = make_checkpoint(folder / "base", replace(SIZE, layers=arguments.layers))
    loras = [make_adapter(folder / f"lora-{seed}", base, seed=seed) for seed in range(3)]
    repositories = {"ann/base": base, **{f"ann/{lora.name}": lora for lora in loras}}
    programs = {
        "download base and LoRAs": (DOWNLOAD, *repositories),
        "plain base": (PLAIN, "ann/base"),
        "dem_hub, base + 3 LoRAs": (OURS, *repositories),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    rate = None if arguments.rate is None else 1e6 * arguments.rate
    with served(repositories, rate) as environment:
        for turn in range(arguments.repeat + 1):
            for name, program in programs.items():
                shutil.rmtree(folder / "home", ignore_errors=True)
                command = [sys.executable, "-c", *program]
                found = run(command, folder, samples_memory=False, environment=environment)
                if turn:
                    seconds[name].append(float(found.output.split()[-1]))
    shutil.rmtree(folder / "home", ignore_errors=True)
    plain = statistics.median(seconds["plain base"])
    print("| | seconds | times plain |\n|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.2f} | {median / plain:.2f} |")


if __name__ == "__main__":
    main()
