// What the library exports beside RegisterCustomOps; kernels/OPERATORS.md describes it.
#pragma once

#define STONNX_EXPORT extern "C" __attribute__((visibility("default")))

STONNX_EXPORT const char* stonnx_kernels_version();
STONNX_EXPORT int stonnx_kernels_operators();
STONNX_EXPORT const char* stonnx_kernels_variant();
STONNX_EXPORT const char* stonnx_kernels_variants();
STONNX_EXPORT const char* stonnx_kernels_reason();
STONNX_EXPORT int stonnx_kernels_bf16();
STONNX_EXPORT void stonnx_kernels_float_as_bf16(int on);
STONNX_EXPORT void stonnx_kernels_threads(int n);
STONNX_EXPORT void stonnx_kernels_names(const char* names);
STONNX_EXPORT double stonnx_kernels_bench(int hidden, int inner, int heads, int tokens, int bf16);
STONNX_EXPORT int stonnx_kernels_select(const char* variant);

namespace stonnx {
int threads_of_new_sessions();
const char* names_in_new_sessions();
bool float_as_bf16_in_new_sessions();
}  // namespace stonnx
