"""Recipes and vectors in other programs: vLLM's plug-in, and adapters in the formats of llama.cpp and MLX.

None of these programs is imported, or needed, before one of them asks. Start with `vllm_plugin.register` for vLLM, and
with `mlx_adapter.write_mlx` or `gguf_adapter.write_gguf` for a format.
"""
