"""LoRA adapters as distribution vectors, in the format of PEFT."""
