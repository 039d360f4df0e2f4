// Both variants for AArch64. Nothing of the standard library: see variant_avx512.inl.
#include <arm_neon.h>

#include "block.h"
#include "cpu.h"

#define HAS_INT16 0
#define SIGNED_CODES 1
#define QUERY_ROWS 4

namespace stonnx {
namespace {
#include "simd_neon.h"
#include "math.h"
#include "team.inl"
#include "rows.inl"
#if HAS_BF16
#include "gemm_neon_i8mm.h"
#else
#include "gemm_neon.h"
#endif
#include "products.inl"
#include "blocks.inl"
#include "attention_neon.h"
#include "attention.inl"
#include "block_attention.inl"
#include "block_feed_forward.inl"
#include "block_vocabulary.inl"
}  // namespace
#include "variant.inl"
}  // namespace stonnx
