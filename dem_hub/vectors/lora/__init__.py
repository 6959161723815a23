"""LoRA adapters of PEFT as distribution vectors, in both directions: `config` and `reader` read them, `writer`
writes them.
"""
