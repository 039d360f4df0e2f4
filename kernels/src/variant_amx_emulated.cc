// Tests only: the AMX variant with tile instructions in plain C++, for CPUs that have AVX512-BF16.
#define TILES_EMULATED
#define VARIANT kAmxEmulated
#define VARIANT_NAME "amx_emulated"
#define VARIANT_MISSING avx512_bf16_missing
#include "variant_amx.inl"
