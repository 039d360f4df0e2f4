// The variants of this build and the one in use.
#pragma once
#include "block.h"

namespace stonnx {

// Null: none. `variant_reason` says why.
const Variant* variant_in_use();
const char* variant_reason();
const char* variants_here();
bool select_variant(const char* name);  // "": the best; false: variant_reason says what is missing

}  // namespace stonnx
