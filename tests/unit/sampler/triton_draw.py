"""Runs the Triton kernels of sampling in the interpreter against their torch versions, for test_sampler_philox."""

import torch

from worker_proc.sampler import adjust, draw, draw_triton


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    for vocab_size in (3, 1000, 9001):
        weights = (torch.randn(3, vocab_size, generator=generator) * 4).exp()
        weights /= weights.amax(dim=1, keepdim=True)
        weights[1, ::3] = 0.0
        weights[2, vocab_size // 2 :] = weights[2, 0]
        low, high = torch.tensor([5, 2**32 - 1, 0]), torch.tensor([2**32 - 1, 9, 7])
        positions = torch.tensor([0, 131071, 5])
        assert torch.equal(
            draw_triton.gumbel_argmax(weights, low, high, positions), draw.gumbel_argmax(weights, low, high, positions)
        )
        top_p = torch.tensor([0.9, 0.3, 1.0], dtype=torch.float64)
        assert torch.equal(draw_triton.top_p_thresholds(weights, top_p), draw.top_p_thresholds(weights, top_p))
        masks = torch.randint(-(2**31), 2**31, (3, -(-vocab_size // 32)), generator=generator).to(torch.int32)
        masks[1], masks[2, 0] = 0, -(2**31)
        on_device, expected = weights.clone(), weights.clone()
        draw_triton.mask_tokens_on_device(on_device, masks)
        adjust.mask_tokens_in_torch(expected, masks)
        assert torch.equal(on_device, expected)
    print("equal")


if __name__ == "__main__":
    main()
