"""Fixtures of several test files."""

import signal
import threading

import jaxtyping
import pytest
import torch

# To import these changes PyTorch for the process (see pretended_device.py); `make test` gives them one of their own.
collect_ignore = ["pretended_device.py", "end_to_end/second_device.py"]


def pytest_configure():
    """Tests of Ctrl-C need Python's own handler; a shell starts background jobs with SIGINT ignored."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def annotations_unchecked():
    """Turn the checks of annotations off that the tests run with, to reach the package's own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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


@pytest.fixture(scope="session")
def suite_folder(tmp_path_factory):
    """Four checkpoints of a small random GPT-NeoX in Hugging Face's layout, half precision, a byte a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({"<|endoftext|>": 0, **{b: i for i, b in enumerate(bytes_, 1)}}, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>")
    folder = tmp_path_factory.mktemp("suite")
    cfg = GPTNeoXConfig(
        vocab_size=257,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    for step in (0, 1, 16, 128):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)
            GPTNeoXForCausalLM(cfg).half().save_pretrained(folder / f"step{step}")
        tokenizer.save_pretrained(folder / f"step{step}")
    return folder
