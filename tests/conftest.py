"""Fixtures of several test files."""

import pytest
import torch


@pytest.fixture(scope="session")
def neox():
    """A small random GPT-NeoX, as Pythia's checkpoints are: plain Hugging Face, and the bridge around it."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    cfg = GPTNeoXConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    hf = GPTNeoXForCausalLM(cfg).eval()
    return hf, build_bridge_from_module(hf, "GPTNeoXForCausalLM", hf_config=hf.config)


@pytest.fixture(scope="session")
def olmo2():
    """A small random OLMo-2: post-norm, rotary positions, RMSNorm."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import Olmo2Config, Olmo2ForCausalLM

    cfg = Olmo2Config(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
        pad_token_id=0,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    hf = Olmo2ForCausalLM(cfg).eval()
    return hf, build_bridge_from_module(hf, "Olmo2ForCausalLM", hf_config=hf.config)
