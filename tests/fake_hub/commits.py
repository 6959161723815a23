"""Short helpers for commits, for the tests of the Hub."""

from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

CARD = """---
library_name: dem-hub
license: apache-2.0
base_model: {base}
base_model_relation: {relation}
tags: [distribution-vector]
datasets: [org/data]
---
# A vector
"""


def add(path: str, data: bytes | str) -> CommitOperationAdd:
    return CommitOperationAdd(path, data.encode() if isinstance(data, str) else data)


def commit(api: HfApi, *operations: CommitOperationAdd | CommitOperationDelete, **options: Any) -> str:
    """Commit to ann/x, and return the new commit's id."""
    return str(api.create_commit("ann/x", list(operations), commit_message="Change", **options).oid)
