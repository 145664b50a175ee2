"""What learns: `ModelConfig` -> `Transformer`."""
