"""llama.cpp's own server with the adapters that are exported, against `DEMModel`. Where `xllamacpp` is installed, which
is a wheel of llama.cpp: `pip install xllamacpp`.
"""

import json
import socket
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dem_hub import DEMModel
from dem_hub.cli.app import main
from tests.serving.test_gguf_adapter import MODELS, in_llama_cpp, make_base, make_vectors, options

PROMPT = [1, 5, 9, 12, 30, 7]
SIZE = 64  # of the vocabulary


def write_base(base: Path, architecture: str, target: Path) -> None:
    """Write a base in GGUF, in float32, as llama.cpp's converter does for Llama and Qwen2."""
    config = json.loads((base / "config.json").read_text())
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_vocab_size(SIZE)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{number}" for number in range(SIZE)])
    writer.add_token_types([gguf.TokenType.NORMAL] * SIZE)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, tensor in load_file(base / "model.safetensors").items():
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            _, tensor = in_llama_cpp(name, tensor, config, True)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Server:
    """llama-server in this process, with adapters and the scales that they have unless a request says otherwise."""

    def __init__(self, model: Path, adapters: Sequence[tuple[Path, float]], addresses: set[tuple[str, int]]) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), scale) for path, scale in adapters]
        params.n_ctx = 64
        params.n_parallel = 1
        params.cpuparams.n_threads = 1
        params.warmup = False
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            params.port = free.getsockname()[1]
        addresses.add(("127.0.0.1", params.port))
        self._server = xllamacpp.Server(params)

    def scale(self, scales: Sequence[Mapping[str, float]]) -> None:
        """Change the scales of all requests."""
        self._post("/lora-adapters", scales)

    def log_probabilities(self, request: Mapping[str, Any] | None = None) -> Tensor:
        """Return those of all tokens after the prompt."""
        body = {"prompt": PROMPT, "n_predict": 1, "n_probs": SIZE, "temperature": 0, "cache_prompt": False}
        answer = self._post("/completion", {**body, **(request or {})})
        found = answer["completion_probabilities"][0]["top_logprobs"]
        values = torch.full((SIZE,), float("nan"))
        for token in found:
            values[token["id"]] = token["logprob"]
        return values

    def _post(self, path: str, body: Any) -> Any:
        address = f"{self._server.listening_address}{path}"
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)


def log_probabilities(base: Path, vectors: Mapping[str, float]) -> Tensor:
    with torch.no_grad():
        logits = DEMModel.from_pretrained(base, vectors=dict(vectors), dtype="float32")(torch.tensor([PROMPT])).logits
    return logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_logits_under_llama_cpp(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], open_addresses: set[tuple[str, int]]
) -> None:
    pytest.importorskip("xllamacpp")
    make, architecture = MODELS[name]
    base = make_base(make, tmp_path / "base")
    vectors = make_vectors(base, tmp_path)
    write_base(base, architecture, tmp_path / "base.gguf")
    assert main(["export", str(base), *options(vectors), "--gguf", "-o", str(tmp_path / "sum.gguf")]) == 0
    assert main(["export", str(base), *options(vectors), "--scales", "-o", str(tmp_path / "loras")]) == 0
    *_, arguments, request = capsys.readouterr().out.splitlines()
    plain = log_probabilities(base, {})
    merged = log_probabilities(base, vectors)
    maths, chat = vectors
    other = log_probabilities(base, {maths: 0.9, chat: 0.0})
    # Two libraries in float32.
    close = {"rtol": 0, "atol": 0.01 * float((merged - plain).abs().max())}

    torch.testing.assert_close(Server(tmp_path / "base.gguf", [], open_addresses).log_probabilities(), plain, **close)
    server = Server(tmp_path / "base.gguf", [(tmp_path / "sum.gguf", 1.0)], open_addresses)
    torch.testing.assert_close(server.log_probabilities(), merged, **close)

    scaled = [part.rpartition(":") for part in arguments.removeprefix("--lora-scaled ").split(",")]
    given = [(Path(path), float(scale)) for path, _, scale in scaled]
    server = Server(tmp_path / "base.gguf", given, open_addresses)
    torch.testing.assert_close(server.log_probabilities(), merged, **close)
    changed = {"lora": [{"id": 0, "scale": 0.9}, {"id": 1, "scale": 0}]}
    torch.testing.assert_close(server.log_probabilities(changed), other, **close)
    server.scale(changed["lora"])
    torch.testing.assert_close(server.log_probabilities(), other, **close)
    torch.testing.assert_close(server.log_probabilities(json.loads(request)), merged, **close)
