// What the CPU lacks for a variant, or null. Compiled for the oldest CPU of the architecture.
#pragma once

namespace stonnx {

const char* baseline_missing();  // of the least demanding variant
const char* avx2_missing();
const char* avx2_vnni_missing();
const char* avx512_vnni_missing();
const char* avx512_bf16_missing();
const char* amx_missing();
const char* neon_dot_missing();
const char* neon_i8mm_missing();

}  // namespace stonnx
