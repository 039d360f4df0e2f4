#include "c_api.h"

#include <string>

#include "variants.h"

namespace stonnx {
namespace {
thread_local int threads = 1;
thread_local bool float_as_bf16 = false;
thread_local std::string names;
}  // namespace
int threads_of_new_sessions() { return threads; }
const char* names_in_new_sessions() { return names.c_str(); }
bool float_as_bf16_in_new_sessions() { return float_as_bf16; }
}  // namespace stonnx

using namespace stonnx;

const char* stonnx_kernels_version() { return STONNX_KERNELS_VERSION; }
int stonnx_kernels_operators() { return 2; }
const char* stonnx_kernels_variant() {
  const Variant* v = variant_in_use();
  return v ? v->name : "";
}
const char* stonnx_kernels_variants() { return variants_here(); }
const char* stonnx_kernels_reason() { return variant_reason(); }
int stonnx_kernels_bf16() {
  const Variant* v = variant_in_use();
  return v && v->bf16;
}
void stonnx_kernels_float_as_bf16(int on) { float_as_bf16 = on != 0; }
// More threads than this share work badly, and each has memory of its own.
void stonnx_kernels_threads(int n) { threads = n < 1 ? 1 : n > 256 ? 256 : n; }
void stonnx_kernels_names(const char* list) { names = list ? list : ""; }
int stonnx_kernels_select(const char* variant) { return select_variant(variant) ? 0 : -1; }
