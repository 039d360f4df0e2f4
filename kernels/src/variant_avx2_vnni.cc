// AVX2 with AVX-VNNI: 8-bit dot products in 256 bits.
#define HAS_INT16 0
#define VARIANT kAvx2Vnni
#define VARIANT_NAME "avx2_vnni"
#define VARIANT_MISSING avx2_vnni_missing
#include "variant_avx2.inl"
