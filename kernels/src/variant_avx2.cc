// AVX2 alone: exact products of 16-bit codes.
#define HAS_INT16 1
#define VARIANT kAvx2
#define VARIANT_NAME "avx2"
#define VARIANT_MISSING avx2_missing
#include "variant_avx2.inl"
