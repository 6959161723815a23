"""Kill operations at random moments, and let the system fail under them. Nothing may be lost.

    python benchmarks/faults.py --kills 200 --errors 200 --seed 0

Every trial starts from the same inputs in a new folder, and runs one operation in a process of its own. Either the
process is killed (SIGKILL) after a random part of the time that the operation takes, or one thing fails under it: a
file cannot be opened, renamed, linked or made (the disk is full, or the permission is missing), a file cannot grow
beyond a random size, or an input is shorter than it was.

Afterwards three things are checked:

* What the operation was to replace is whole: the old files or the new ones, and no mixture.
* The process ended well, by the signal, or with an error that names its cause: `DemHubError`, `OSError` or an error
  of the Hub.
* A second run completes. It leaves the same files as a run that nothing disturbed, and no partial files next to them.

Needs Linux. The Hub is the one of the tests, on this machine.
"""

import argparse
import errno
import functools
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fake_hub.session import HUB

# huggingface_hub reads these when it is imported.
os.environ["HF_ENDPOINT"] = HUB.endpoint
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="dem_hub-faults-")
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_TOKEN"] = HUB.user.token
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from tiny import COUNTING, counting_base, counting_model, counting_rows
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import dem_hub
from dem_hub import DEMCallback, DistributionVector, VectorStore, search_coefficients
from dem_hub.cli import main
from dem_hub.errors import DemHubError

# The code of dem_hub.
PACKAGE = Path(dem_hub.__file__).parent

# Exit statuses of a trial's process.
SUCCEEDED = 0
REFUSED = 3
CRASHED = 4

# What Python's audit events tell of files that are about to be changed.
CHANGES = {"open", "os.rename", "os.mkdir", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate"}

# Seconds after which a process counts as hanging. The slowest operation takes three.
PATIENCE = 120.0

BASE = "inputs/base"
OLD = "inputs/old-vector"
NEW = "inputs/new-vector"
REPO_ID = "ann/vector"


@dataclass(frozen=True)
class Operation:
    """An operation on the folder `work`: how it starts, what it does, which folder it leaves, and which input it can
    find cut.
    """

    name: str
    run: Callable[[], Any]
    target: str
    before: Callable[[], Any] = lambda: None
    cut: str = ""


def extract() -> None:
    DistributionVector.extract(BASE, "inputs/up").save_pretrained("work/vector")


def save_over() -> None:
    DistributionVector.from_pretrained(NEW).save_pretrained("work/vector")


def save_old() -> None:
    DistributionVector.from_pretrained(OLD).save_pretrained("work/vector")


def merge() -> None:
    run_command("merge", BASE, "--vector", f"{NEW}=0.5", "-o", "work/merged", "--max-shard-size", "20KB")


def run_command(*arguments: str) -> None:
    """Run a command of `dem-hub`, and turn its refusal into an error."""
    status = main(arguments)
    if status != 0:
        raise OSError(f"dem-hub {arguments[0]} ended with {status}.")


def create_store() -> None:
    store = VectorStore.create("work/store", BASE)
    store.add("first", DistributionVector.from_pretrained(OLD))


def add_to_store() -> None:
    store = VectorStore.from_pretrained("work/store")
    if "second" not in store:
        store.add("second", DistributionVector.from_pretrained(NEW))


def search() -> None:
    data = {way: counting_rows(step, 12, seed=2) for way, step in COUNTING.items() if way != "threes"}
    result = search_coefficients(BASE, [OLD, NEW], data, cache="work/cache", max_forward=6)
    result.save_pretrained("work/found", exist_ok=True)


def push() -> None:
    DistributionVector.from_pretrained(NEW).push_to_hub(REPO_ID, base_model="org/base")


def train() -> None:
    """Train four steps with the callback, which leaves a vector at each save; a second run resumes."""
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    rows = [{"input_ids": row, "labels": row} for row in counting_rows(1, 16, seed=3)]
    arguments = TrainingArguments(
        "work/run",
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.add_callback(DEMCallback(base_model=BASE, when="save", codec="dense"))
    checkpoints = list(Path("work/run").glob("checkpoint-*/trainer_state.json"))
    trainer.train(resume_from_checkpoint=bool(checkpoints))


OPERATIONS = [
    Operation("extract", extract, "work/vector", cut="inputs/up/model.safetensors"),
    Operation("save over", save_over, "work/vector", before=save_old, cut=f"{NEW}/vector_model.safetensors"),
    Operation("merge", merge, "work/merged", cut=f"{BASE}/model.safetensors"),
    Operation("store.add", add_to_store, "work/store", before=create_store, cut=f"{NEW}/vector_model.safetensors"),
    Operation("search", search, "work/found", cut=f"{OLD}/vector_model.safetensors"),
    Operation("push", push, "", cut=f"{NEW}/vector_model.safetensors"),
    Operation("callback", train, "work/run/vector"),
]


def in_process(action: Callable[[], Any], log: Path) -> int:
    """Start an action in a process of its own, whose output goes to a file; return the process's number."""
    number = os.fork()
    if number:
        return number
    status = CRASHED
    try:
        stream = into(log).stdin
        assert stream is not None
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            action()
            status = SUCCEEDED
        except (DemHubError, HfHubHTTPError, OSError) as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            status = REFUSED
        except Exception as error:  # noqa: BLE001  (any other error of dem_hub is what this looks for)
            traceback.print_exc()
            if not is_ours(error):
                status = REFUSED
    finally:
        sys.stdout.flush()
        os._exit(status)


@functools.cache
def into(log: Path) -> "subprocess.Popen[bytes]":
    """Return a process that writes into the log: what is printed must not fail where files have a limit of size."""
    with log.open("a") as stream:
        return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=stream)


def is_ours(error: BaseException) -> bool:
    """Tell whether dem_hub was at work when an error was raised, and not the Trainer, which saves its own state."""
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None:
            continue
        frames = traceback.extract_tb(current.__traceback__)
        if any(Path(frame.filename).is_relative_to(PACKAGE) for frame in frames):
            return True
        pending += [current.__cause__, current.__context__]
    return False


def wait_for(number: int) -> int:
    """Return the exit status of a process, or minus the signal that ended it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    raise TimeoutError(f"A process hung for {PATIENCE:g} seconds.")


def digests(folder: str) -> dict[str, str]:
    """Return the sha256 of every file of a folder that does not differ between two runs; empty if there is no
    folder.
    """
    if not folder:
        return {name: hashlib.sha256(data).hexdigest() for name, data in pushed_files().items()}
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and path.name not in {"search_result.json", "dem_training.json", "vector_config.json"}:
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def pushed_files() -> dict[str, bytes]:
    """Return the files of the repository on the tests' Hub; empty where it has none."""
    try:
        return HUB.files(REPO_ID)
    except KeyError:
        return {}


def check_whole(operation: Operation) -> None:
    """Read the target as its users do; raise if it is there and is not whole."""
    target = Path(operation.target)
    if operation.name in {"extract", "save over", "callback"} and target.is_dir():
        read_vector(target)
    if operation.name == "store.add":
        store = VectorStore.from_pretrained(target)
        for name in store:
            read_vector(target / name)
        if "first" not in store:
            raise AssertionError("The first vector of the store is lost.")
    if operation.name == "merge" and target.is_dir():
        AutoModelForCausalLM.from_pretrained(target)


def read_vector(folder: Path) -> None:
    """Decode every tensor of a vector."""
    vector = DistributionVector.from_pretrained(folder)
    assert vector.config is not None
    for name in vector.config.tensors:
        vector.decode(name, BASE)


def leftovers() -> list[str]:
    """Return the partial files below the working folder."""
    return [str(path) for path in Path("work").rglob("*") if ".partial" in path.name]


def fail_once(count: int, number: int) -> None:
    """Let the `count`-th change of a file below the working folder fail with an error of the system."""
    place = os.path.realpath("work")
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in CHANGES or not is_change(event, arguments, place):
            return
        seen += 1
        if seen == count:
            raise OSError(number, os.strerror(number), str(arguments[0]))

    sys.addaudithook(hook)


def count_changes(run: Callable[[], Any], path: Path) -> None:
    """Run an operation, and write into a file how many changes it made below the working folder."""
    place = os.path.realpath("work")
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in CHANGES and is_change(event, arguments, place):
            seen += 1

    sys.addaudithook(hook)
    run()
    total = seen
    path.write_text(str(total))


def is_change(event: str, arguments: tuple[Any, ...], place: str) -> bool:
    """Tell whether an audit event is a change of something below a folder."""
    path = arguments[0]
    if not isinstance(path, (str, os.PathLike)) or not str(Path(path).absolute()).startswith(place):
        return False
    if event != "open":
        return True
    return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(arguments[2], int) else False


def limit_file_size(size: int) -> None:
    """Let no file of this process grow beyond a size in bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def make_inputs() -> None:
    """Make the models and the vectors that every trial starts from."""
    counting_base()
    for way in ("up", "down"):
        counting_model(way)
    shutil.copytree("models/counting", "inputs")
    DistributionVector.extract(BASE, "inputs/down", codec="dense").save_pretrained(OLD)
    DistributionVector.extract(BASE, "inputs/up", codec="int8").save_pretrained(NEW)


def start(operation: Operation, log: Path) -> None:
    """Bring the working folder, and the repository, to where the operation begins."""
    shutil.rmtree("work", ignore_errors=True)
    Path("work").mkdir()
    HUB.reset()
    api = HfApi(token=HUB.user.token)
    HUB.add_user("ann", orgs=("org",))
    api.create_repo("org/base")
    run_whole(operation.before, log)


def run_whole(action: Callable[[], Any], log: Path) -> None:
    """Run an action in a process of its own, undisturbed."""
    status = wait_for(in_process(action, log))
    if status != SUCCEEDED:
        raise AssertionError(f"An undisturbed run ended with {status}; {log} has its output.")


@dataclass(frozen=True)
class Reference:
    """The time and the files of an undisturbed run of an operation."""

    seconds: float
    changes: int
    files: dict[str, str]
    largest: int


def measure(operation: Operation, log: Path) -> Reference:
    """Run an operation undisturbed, twice: once for its time and files, once for its changes of files."""
    start(operation, log)
    began = time.monotonic()
    run_whole(operation.run, log)
    seconds = time.monotonic() - began
    files = digests(operation.target)
    sizes = [path.stat().st_size for path in Path("work").rglob("*") if path.is_file()]
    start(operation, log)
    run_whole(lambda: count_changes(operation.run, Path("changes")), log)
    return Reference(seconds, int(Path("changes").read_text()), files, max(sizes, default=1))


def kill(operation: Operation, reference: Reference, chance: random.Random, log: Path) -> str:
    """Kill an operation at a random moment; return what happened."""
    number = in_process(operation.run, log)
    time.sleep(chance.uniform(0, 1.05 * reference.seconds))
    os.kill(number, signal.SIGKILL)
    status = wait_for(number)
    return "was done" if status == SUCCEEDED else "was killed"


def disturb(operation: Operation, reference: Reference, chance: random.Random, log: Path) -> str:
    """Let one thing fail under an operation; return what happened."""
    ways = ["no space", "no permission", "size limit"] if operation.target else []
    if operation.cut:
        ways.append("cut input")
    way = chance.choice(ways)
    original = Path(operation.cut or OLD, "" if operation.cut else "vector_config.json")
    whole = original.read_bytes()
    count = chance.randint(1, max(1, reference.changes))
    size = chance.randint(0, reference.largest)

    def disturbed() -> None:
        if way == "no space":
            fail_once(count, errno.ENOSPC)
        elif way == "no permission":
            fail_once(count, errno.EACCES)
        elif way == "size limit":
            limit_file_size(size)
        operation.run()

    if way == "cut input":
        original.write_bytes(whole[: chance.randint(0, len(whole) - 1)])
    try:
        status = wait_for(in_process(disturbed, log))
    finally:
        original.write_bytes(whole)
    if status == CRASHED:
        raise AssertionError(f"{way}: neither a refusal nor an error of the system")
    outcome = "went on" if status == SUCCEEDED else "refused"
    return f"{way}, {outcome}"


def try_once(
    operation: Operation, reference: Reference, hurt: Callable[..., str], chance: random.Random, log: Path
) -> str:
    """Disturb an operation, check what is left, and run it again; return what happened."""
    start(operation, log)
    outcome = hurt(operation, reference, chance, log)
    run_whole(lambda: check_whole(operation), log)
    run_whole(operation.run, log)
    if operation.name not in {"callback", "search"} and digests(operation.target) != reference.files:
        raise AssertionError("The second run left other files than an undisturbed one.")
    run_whole(lambda: check_whole(operation), log)
    rest = leftovers()
    if rest:
        raise AssertionError(f"The second run left {rest[0]}.")
    return outcome


def main_script() -> int:
    """Run all trials and print a table; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="processes that are killed (default: %(default)s)")
    parser.add_argument("--errors", type=int, default=200, help="errors of the system (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of moments and errors (default: %(default)s)")
    parser.add_argument("--only", default="", help="operations whose name contains this text")
    parser.add_argument(
        "--log", type=Path, default=Path("faults.log"), help="output of the processes (default: %(default)s)"
    )
    options = parser.parse_args()
    log = options.log.resolve()
    log.write_text("")
    into(log)
    # The forked processes need the one thread that a fork leaves them.
    torch.set_num_threads(1)
    HUB.start()
    operations = [operation for operation in OPERATIONS if options.only in operation.name]
    lost = 0
    with tempfile.TemporaryDirectory(prefix="dem_hub-faults-") as folder:
        home = Path.cwd()
        os.chdir(folder)
        run_whole(make_inputs, log)
        references = {operation.name: measure(operation, log) for operation in operations}
        for title, hurt, trials in (("kills", kill, options.kills), ("errors", disturb, options.errors)):
            outcomes: dict[str, Counter[str]] = {operation.name: Counter() for operation in operations}
            for trial in range(trials):
                operation = operations[trial % len(operations)]
                chance = random.Random(f"{options.seed} {title} {trial}")
                with log.open("a") as stream:
                    stream.write(f"== {title} {trial}, {operation.name}\n")
                try:
                    outcome = try_once(operation, references[operation.name], hurt, chance, log)
                except (AssertionError, TimeoutError) as error:
                    outcome = f"LOST: {error}"
                    lost += 1
                    print(f"{title} {trial}, {operation.name}: {error}", file=sys.stderr, flush=True)
                outcomes[operation.name][outcome] += 1
            for name, counts in outcomes.items():
                row = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
                print(f"| {title} | {name} | {row} |", flush=True)
        os.chdir(home)
    HUB.stop()
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
    print(f"\n{options.kills} kills and {options.errors} errors, seed {options.seed}: {lost} lost.")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main_script())
