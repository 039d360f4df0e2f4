// AMX and its emulation. Nothing of the standard library: see variant_avx512.inl.
#include <immintrin.h>

#include "block.h"
#include "cpu.h"

#define HAS_BF16 1
#define HAS_INT16 0
#define SIGNED_CODES 0

namespace stonnx {
namespace {
#include "simd_avx512.h"
#include "math.h"
#include "team.inl"
#include "tiles.h"
#include "rows.inl"
#include "gemm_amx.h"
#include "blocks.inl"
#include "attention_amx.h"
#include "attention_bf16.inl"
#include "block_attention.inl"
#include "block_feed_forward.inl"
#include "block_vocabulary.inl"
}  // namespace
#include "variant.inl"
}  // namespace stonnx
