// AMX: int8 and bfloat16 products and attention in tiles.
#define VARIANT kAmx
#define VARIANT_NAME "amx"
#define VARIANT_MISSING amx_missing
#include "variant_amx.inl"
