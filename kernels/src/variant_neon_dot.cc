// AArch64 with dot product instructions.
#define HAS_BF16 0
#define TILE_ROWS 4
#define VARIANT kNeonDot
#define VARIANT_NAME "neon_dot"
#define VARIANT_MISSING neon_dot_missing
#include "variant_neon.inl"
