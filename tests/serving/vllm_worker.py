"""One process of vLLM: it loads a model, and prints the hash of its weights and the tokens that it continues with.

The weights are then changed to those of other models in place, and each time the same is printed. vLLM on a CPU loads
one model a process where numba is imported.
"""

import hashlib
import json
import sys
from typing import Any


def digest(model: Any) -> str:
    """Return a hash of all parameters, by their names in vLLM's model."""
    import torch

    sha256 = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        sha256.update(name.encode())
        sha256.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


def look(llm: Any, prompt: list[int], length: int) -> list[Any]:
    """Return the hash of the weights of each rank, and the most likely tokens after a prompt."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
    return [llm.apply_model(digest), list(outputs[0].outputs[0].token_ids)]


def main() -> None:
    """Load what the first argument says."""
    from vllm import LLM

    task = json.loads(sys.argv[1])
    llm = LLM(enforce_eager=True, max_model_len=64, **task["model"])
    seen = [look(llm, task["prompt"], task["length"])]
    for path in task["reloads"]:
        llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        seen.append(look(llm, task["prompt"], task["length"]))
    sys.stdout.write(f"SEEN {json.dumps(seen)}\n")


if __name__ == "__main__":
    main()
