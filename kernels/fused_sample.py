"""One token for each row of logits: the arg-max, or a draw at the row's temperature; no filters, no logit edits.

A draw is the arg-max of logit / temperature + Gumbel noise. The noise is a function of (key, position, token id)
alone: Philox with counter (token id // 4, position, 0, 0), word `token id % 4` of its output. A row is cut into
chunks; a second kernel selects the best chunk, keeps the id for the next step and writes it to the output buffer. The
lowest id wins among equal scores.
"""

import torch
import triton
import triton.language as tl

from kernels.pdl import pdl_options, wait_for_prior_kernel

BLOCK = 4096
NO_ID = tl.constexpr(2147483647)


@triton.jit
def _log_exponential(words):
    """log(-log(1 - u)) of Philox words, u at least 2^-31; a series where u is small and 1 - u has lost the digits."""
    u = tl.maximum(tl.uint_to_uniform_float(words), 4.656612873077393e-10)
    tail = u * (0.2 + u * (0.16666667 + u * (0.14285715 + u * (0.125 + u * 0.11111111))))
    series = u + u * u * (0.5 + u * (0.33333334 + u * (0.25 + tail)))
    return tl.log(tl.where(u < 0.1, series, -tl.log(1.0 - u)))


@triton.jit
def _score_kernel(
    logits_ptr, slots_ptr, positions_ptr, temperatures_ptr, keys_low_ptr, keys_high_ptr, greedy_ptr,
    scores_ptr, winners_ptr, peaks_ptr, vocab_size, stride_logits, stride_floats, stride_ints, BLOCK: tl.constexpr,
    USE_PDL: tl.constexpr,
):  # fmt: skip
    wait_for_prior_kernel(USE_PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    position = tl.load(positions_ptr + row)
    if position <= 0:
        return
    slot = tl.load(slots_ptr + row).to(tl.int64)
    ids = chunk * BLOCK + tl.arange(0, BLOCK)
    logits_ptr += row.to(tl.int64) * stride_logits
    scores = tl.load(logits_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    column = row * tl.num_programs(1) + chunk
    # tl.max skips NaN; the peak must not.
    peak = tl.where(tl.max((scores != scores).to(tl.int32), 0) > 0, float("nan"), tl.max(scores, 0))
    tl.store(peaks_ptr + column, peak)
    if tl.load(greedy_ptr + slot * stride_ints) == 0:
        inverse = 1.0 / tl.load(temperatures_ptr + slot * stride_floats).to(tl.float32)
        low = tl.load(keys_low_ptr + slot * stride_ints)
        key = low | (tl.load(keys_high_ptr + slot * stride_ints) << 32)
        groups = chunk * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
        zero = tl.zeros_like(groups)
        r0, r1, r2, r3 = tl.philox(key, groups, zero + position, zero, zero)
        # Joined so that word i of group g lands at 4 g + i, the index of its token.
        words = tl.reshape(tl.join(tl.join(r0, r2), tl.join(r1, r3)), [BLOCK])
        scores = scores * inverse - _log_exponential(words)
    best = tl.max(scores, 0)
    tl.store(scores_ptr + column, best)
    tl.store(winners_ptr + column, tl.min(tl.where((scores == best) & (ids < vocab_size), ids, NO_ID), 0))


@triton.jit(do_not_specialize=["ring", "stride_output"])
def _select_kernel(
    scores_ptr, winners_ptr, peaks_ptr, slots_ptr, positions_ptr, last_token_ptr, output_ptr, sequence_ptr,
    chunks, ring, stride_output, BLOCK: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    wait_for_prior_kernel(USE_PDL)
    row = tl.program_id(0)
    if tl.load(positions_ptr + row) <= 0:
        return
    index = tl.arange(0, BLOCK)
    keep = index < chunks
    scores = tl.load(scores_ptr + row * chunks + index, mask=keep, other=float("-inf"))
    winners = tl.load(winners_ptr + row * chunks + index, mask=keep, other=NO_ID)
    peaks = tl.load(peaks_ptr + row * chunks + index, mask=keep, other=float("-inf"))
    best = tl.max(scores, 0)
    winner = tl.min(tl.where(scores == best, winners, NO_ID), 0)
    has_nan = tl.max((peaks != peaks).to(tl.int32), 0) > 0
    peak = tl.max(peaks, 0)
    is_good = (peak < float("inf")) & (peak > float("-inf")) & (winner != NO_ID)
    is_good = is_good & (has_nan == 0)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    tl.store(last_token_ptr + slot, tl.where(is_good, winner, 0).to(tl.int64))
    sequence = tl.load(sequence_ptr) % ring
    tl.store(output_ptr + sequence * stride_output + row, tl.where(is_good, winner, -1))


def fused_sample(
    logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, floats: torch.Tensor, ints: torch.Tensor,
    last_token: torch.Tensor, output: torch.Tensor, sequence: torch.Tensor, *,
    temperature: int, key_low: int, key_high: int, is_greedy: int,
) -> None:  # fmt: skip
    """Sample one token a row; write it to last_token[slot] and to output[sequence % ring, row], -1 for a bad row.

    logits [R, V] of any float type, unit stride in the row; a row is bad if it holds NaN or +inf, or only -inf. slots
    and positions [R] int32; a position is the index of the sampled token in its sequence, and a row at position 0 or
    below is skipped. floats [slots, n] float64 and ints [slots, m] int64 hold the slots' parameters in the named
    columns. last_token [slots + 1] int64; output [ring, >= R] int32, may be pinned host memory; sequence [1] int32.
    """
    rows, vocab_size = logits.shape
    chunks = triton.cdiv(vocab_size, BLOCK)
    scores = torch.empty((rows, chunks), dtype=torch.float32, device=logits.device)
    winners = torch.empty((rows, chunks), dtype=torch.int32, device=logits.device)
    peaks = torch.empty((rows, chunks), dtype=torch.float32, device=logits.device)
    _score_kernel[(rows, chunks)](
        logits, slots, positions, floats[:, temperature], ints[:, key_low], ints[:, key_high], ints[:, is_greedy],
        scores, winners, peaks, vocab_size, logits.stride(0), floats.stride(0), ints.stride(0), BLOCK=BLOCK,
        num_warps=4, **pdl_options(logits.device),
    )  # fmt: skip
    _select_kernel[(rows,)](
        scores, winners, peaks, slots, positions, last_token, output, sequence, chunks, output.shape[0],
        output.stride(0), BLOCK=triton.next_power_of_2(chunks), num_warps=1, **pdl_options(logits.device),
    )  # fmt: skip


def fused_sample_reference(
    logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, temperatures: torch.Tensor,
    is_greedy: torch.Tensor, noise: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Return the ids that fused_sample writes, [R] int64 with -1 for bad rows, in plain torch.

    `noise` [R, V] is the exponential noise of the rows; temperatures [slots], is_greedy [slots].
    """
    wide = logits.to(torch.float32)
    rows = slots.long()
    drawn = wide / temperatures[rows, None].to(torch.float32) - noise.log()
    scores = torch.where(is_greedy[rows, None] == 1, wide, drawn)
    ids = (scores == scores.amax(1, keepdim=True)).to(torch.int8).argmax(1)
    return torch.where(wide.amax(1).isfinite(), ids, -1)
