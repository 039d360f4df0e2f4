// AArch64 with matrix instructions for 8 bits and bfloat16.
#define HAS_BF16 1
#define TILE_ROWS 8
#define GROUP_BYTES 8
#define VARIANT kNeonI8mm
#define VARIANT_NAME "neon_i8mm"
#define VARIANT_MISSING neon_i8mm_missing
#include "variant_neon.inl"
