"""SmolLM2's GGUF file to a Hugging Face folder: safetensors in bfloat16, config, tokenizer.

transformers reads GGUF; three things are set right on the way. Weights are unpacked, because packed ones can be neither
trained nor saved. A number that GGUF keeps in float32 gets its decimal form back (1e-05, not 9.99999974e-06), so that
the config equals the original's. And digits are split one by one before byte-pair merging, as SmolLM2's own tokenizer
does: transformers falls back to GPT-2's pattern, which treats a number after two blanks differently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megacpt.errors import ModelError


def convert_smollm2(source: Path, target: Path) -> None:
    """Write the model in the GGUF file `source` as a Hugging Face folder.

    Raises:
        ModelError: the packages that read GGUF are missing.
    """
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        hint = "pip install 'megacpt[quickstart]'"
        raise ModelError("GGUF files need two more packages", found=error, hint=hint) from None
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place: dict[str, Any] = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16, quantization_config=unpacked)
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(**place)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(target)
