// AArch64 with dot product instructions. Nothing of the standard library: see variant_avx512.inl.
#include <arm_neon.h>

#include "block.h"
#include "cpu.h"

#define HAS_BF16 0
#define HAS_INT16 0
#define SIGNED_CODES 1
#define TILE_ROWS 4
#define QUERY_ROWS 4
#define VARIANT kNeonDot
#define VARIANT_NAME "neon_dot"
#define VARIANT_MISSING neon_dot_missing

namespace stonnx {
namespace {
#include "simd_neon.h"
#include "math.h"
#include "team.inl"
#include "rows.inl"
#include "gemm_neon.h"
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
