// AVX-512 with VNNI: int8 products, attention in float32.
#define HAS_BF16 0
#define VARIANT kAvx512Vnni
#define VARIANT_NAME "avx512_vnni"
#define VARIANT_MISSING avx512_vnni_missing
#include "variant_avx512.inl"
