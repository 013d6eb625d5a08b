"""A streaming kernel in Triton: what memory gives when nothing is computed.

No annotation but Triton's own: it takes any other for a global of the kernel, which it refuses.
"""

import triton
import triton.language as tl


@triton.jit
def stream_kernel(source, target, count, READS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write ``count`` words, each the exclusive or of READS words that lie ``count`` apart in the source."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    word = tl.load(source + at, mask=inside, other=0)
    for part in tl.static_range(1, READS):
        word ^= tl.load(source + part * count + at, mask=inside, other=0)
    tl.store(target + at, word, mask=inside)
