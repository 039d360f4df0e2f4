// AVX-512 with VNNI and BF16: int8 and bfloat16 products, attention in bfloat16.
#define HAS_BF16 1
#define VARIANT kAvx512Bf16
#define VARIANT_NAME "avx512_bf16"
#define VARIANT_MISSING avx512_bf16_missing
#include "variant_avx512.inl"
