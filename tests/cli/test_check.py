"""`dem-hub check`: its table and its JSON."""

import json
from pathlib import Path

import pytest

from dem_hub import DEMModel, check_merge
from dem_hub.cli.app import main
from tests.cli.running import run
from tests.support.tiny_models import Zoo


def test_check(zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = zoo.models("llama-tied", "float32")
    DEMModel.from_pretrained(models.base, vectors={str(zoo.vector("llama-tied", "float32")): 0.5}).dem.save_pretrained(
        "recipe"
    )
    rows = [[5, 6, 7, 8, 9, 3, 44], [9, 10, 11], [12, 13, 14, 15, 16]]
    Path("rows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    words = ["check", "recipe", "--against", models.full, "--data", "words=rows.jsonl"]
    assert main([*map(str, words)]) == 0
    told = capsys.readouterr()
    assert "3 models one after the other, each over 12 scored tokens; 3.1 kB of predictions" in told.err
    found = check_merge("recipe", models.full, {"words": rows})["words"]
    lines = told.out.splitlines()
    assert lines[0].split() == ["loss", "(nats", "per", "token)", "tokens", "base", "fine-tune", "merge"]
    assert f"{found.merged.value:.4f} ± {found.merged.error:.4f}" in lines[1]
    assert lines[4].endswith(found.verdict)
    assert lines[-1].startswith("Share kept:")
    data = json.loads(run(capsys, *words, "--json"))["words"]
    assert data["divergence"] == {"value": found.divergence.value, "error": found.divergence.error}
    assert data["verdict"] == found.verdict
