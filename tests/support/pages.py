"""The code blocks of a Markdown page, run in one folder from the first to the last, as a reader would type them.

Python blocks share one namespace, shell lines are `dem-hub` commands of this process, and JSON and YAML must parse. YAML
that begins with the name of a file is put there. A block that cannot run here has a comment before it that says why: `<!-- no-test: reason -->`. All pages use the same
names on the Hub: a base, fine-tunes, adapters and a vector.
"""

import copy
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi

from dem_hub import DistributionVector
from dem_hub.cli.app import main
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Zoo, make_adapter

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
MODELS, ADAPTERS, VECTOR = (
    ("org/base", "me/base-maths", "me/base-chat"),
    ("other/chat-lora", "me/code-lora"),
    "me/maths-vector",
)
WORDS = {"maths": 1, "chat": -1, "code": 2}  # the step between the words of a text
_BLOCK = re.compile(
    r"^(?P<mark><!-- (?P<kind>no-test|test)(?P<reason>: [^\n]+)? -->\n+)?```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_made: dict[str, Any] = {}


@dataclass(frozen=True)
class Block:
    """One block: the line where it begins, its language and its text. `skipped` is the reason why it does not run."""

    line: int
    language: str
    code: str
    skipped: str = ""


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, in order. Every fence belongs to one."""
    text = page.read_text("utf-8")
    found = list(_BLOCK.finditer(text))
    assert 2 * len(found) == len(re.findall(r"^\s*```", text, re.MULTILINE)), (
        f"{page.name} has a fence that begins no block."
    )
    blocks = []
    for match in found:
        skipped = match["kind"] == "no-test"
        assert not skipped or match["reason"], f"{page.name} does not say why a block is not tested."
        reason = match["reason"].removeprefix(": ") if skipped else ""
        blocks.append(Block(text.count("\n", 0, match.start("code")), match["language"], match["code"], reason))
    return blocks


def run(page: Path, names: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run a page, and return the names that its Python blocks define."""
    namespace = dict(names or {})
    for block in blocks_of(page):
        if block.skipped:
            continue
        assert block.language in _RUNNERS, f"{page.name}:{block.line} is {block.language!r}, which nothing here runs."
        _RUNNERS[block.language](page, block, namespace)
    return namespace


def _python(page: Path, block: Block, namespace: dict[str, Any]) -> None:
    exec(compile("\n" * block.line + block.code, page.name, "exec"), namespace)


def _shell(page: Path, block: Block, namespace: dict[str, Any]) -> None:
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "dem-hub", f"{page.name}:{block.line}: '{line}' is no dem-hub command."
            assert main(words[1:]) == 0, f"{page.name}:{block.line}: '{line}' failed."


def _json(page: Path, block: Block, namespace: dict[str, Any]) -> None:
    json.loads(block.code)


def _yaml(page: Path, block: Block, namespace: dict[str, Any]) -> None:
    """Parse a block; one whose first line is a comment with the name of a file is written to that file."""
    assert isinstance(yaml.safe_load(block.code), dict), f"{page.name}:{block.line} is no mapping."
    named = re.match(r"# (\w+\.yml)\n", block.code)
    if named:
        Path(named[1]).write_text(block.code)


_RUNNERS = {"python": _python, "bash": _shell, "json": _json, "yaml": _yaml}


def set_the_stage(hub: Hub, zoo: Zoo, folder: Path) -> str:
    """Put the repositories of the pages on an empty Hub, and validation texts into a folder. Return the token of
    `me`.
    """
    token: str = hub.add_user("me", orgs=("org", "other")).token
    if not _made:
        _publish(zoo, token, zoo.root / "cast")
        _made["repos"], _made["contents"] = hub.store.repos, dict(hub.store.contents)
    hub.store.repos, hub.store.contents = copy.deepcopy(_made["repos"]), dict(_made["contents"])
    for name, step in WORDS.items():
        rows = (
            {"text": " ".join(f"w{(start + step * place) % 50}" for place in range(9))} for start in range(0, 50, 2)
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return token


def _publish(zoo: Zoo, token: str, folder: Path) -> None:
    models, api = zoo.models("llama-tied", "bfloat16"), HfApi(token=token)
    base = MODELS[0]
    for seed, repo_id in enumerate(ADAPTERS):
        adapter = folder / repo_id
        make_adapter(models.base, adapter, seed, target_modules="all-linear", r=3 + seed, lora_alpha=6)
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        (adapter / "README.md").write_text(
            f"---\nbase_model: {base}\nlibrary_name: peft\n---\n"
        )  # PEFT's names the folder
    sources = zip(
        MODELS + ADAPTERS, (models.base, models.full, models.low, *(folder / name for name in ADAPTERS)), strict=True
    )
    for repo_id, source in sources:
        api.create_repo(repo_id)
        api.upload_folder(repo_id=repo_id, folder_path=source)
    DistributionVector.extract(base, MODELS[1], token=token).push_to_hub(VECTOR, token=token)
