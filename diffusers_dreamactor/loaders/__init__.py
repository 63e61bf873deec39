"""LoRA and single-file loading."""
