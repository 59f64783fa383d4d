"""Experts of a tiny model in MXFP4, for make_tiny_models.py: by the format's definition, without the engine's code."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


@torch.no_grad()
def round_experts(model) -> dict[str, torch.Tensor]:
    """Round the stacks of experts to what MXFP4 can say; return its codes and scales by name.

    A group of 32 numbers of a row has a power of two, by which the numbers of its codes are multiplied; the first of
    two codes is in the lower half of a byte."""
    half = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    numbers, packed = torch.cat((half, -half)), {}
    for name, parameter in model.named_parameters():
        if not name.endswith("experts.gate_up_proj") and not name.endswith("experts.down_proj"):
            continue
        rows = parameter.transpose(1, 2)
        groups = rows.reshape(*rows.shape[:2], -1, 32)
        exponents = groups.abs().amax(-1).log2().floor() - 2
        scale = torch.exp2(exponents).unsqueeze(-1)
        codes = (groups.unsqueeze(-1) - scale.unsqueeze(-1) * numbers).abs().argmin(-1)
        parameter.copy_((numbers[codes] * scale).reshape(rows.shape).transpose(1, 2))
        packed[f"{name}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        packed[f"{name}_scales"] = (exponents + 127).to(torch.uint8)
    return packed


def pack_experts(folder: Path, stacks: dict[str, torch.Tensor]) -> None:
    """Put codes and scales in place of the plain stacks, and say so in config.json as OpenAI's checkpoints do."""
    path = folder / "model.safetensors"
    plain = {name.rpartition("_")[0] for name in stacks}
    kept = {name: tensor for name, tensor in load_file(path).items() if name not in plain}
    save_file(kept | stacks, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    others = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": others}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
