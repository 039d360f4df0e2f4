#include "variants.h"

#include <stdlib.h>
#include <string.h>

#include <string>

#include "cpu.h"
#include "process_lock.h"

namespace stonnx {

// STONNX_VARIANTS is VARIANT(kAmx) VARIANT(kAvx2) ..., best first: the build knows which files it has.
#define VARIANT(name) extern const Variant name;
STONNX_VARIANTS
#undef VARIANT

namespace {

#define VARIANT(name) &name,
const Variant* const kVariants[] = {STONNX_VARIANTS};
#undef VARIANT

struct State {
  const Variant* chosen = nullptr;
  std::string here;
  // Reasons are handed out as pointers that live for ever: the few there can be are kept.
  const char* reason = "";

  State() {
    for (const Variant* v : kVariants)
      if (!v->missing()) here += (here.empty() ? "" : ",") + std::string(v->name);
    const char* wanted = getenv("STONNX_KERNELS");
    if (wanted && !strcmp(wanted, "0"))
      reason = "STONNX_KERNELS=0 turns the kernels off";
    else
      choose(wanted ? wanted : "");
  }

  bool choose(const char* name) {
    for (const Variant* v : kVariants) {
      if (*name && strcmp(name, v->name)) continue;
      const char* missing = v->missing();
      if (!missing) {
        chosen = v;
        reason = "";
        return true;
      }
      if (*name) return none("STONNX_KERNELS=" + std::string(name) + ": the CPU lacks " + missing + "; it can run: " + known());
    }
    if (!*name) return none(std::string("the CPU lacks ") + baseline_missing());
    return none("STONNX_KERNELS=" + std::string(name) + " is not a variant; this CPU can run: " + known());
  }

  std::string known() const {
    if (here.empty()) return "none. Unset STONNX_KERNELS";
    std::string all;
    for (const char letter : here) all += letter == ',' ? ", " : std::string(1, letter);
    return all + ". Set STONNX_KERNELS to one of these, or unset it";
  }

  bool none(const std::string& why) {
    chosen = nullptr;
    reason = strdup(why.c_str());
    return false;
  }
};

State& state() {
  static State* one = new State;  // never destroyed: sessions may outlive static objects
  return *one;
}

}  // namespace

const Variant* variant_in_use() {
  const std::lock_guard<std::mutex> guard(process_lock());
  return state().chosen;
}

const char* variant_reason() {
  const std::lock_guard<std::mutex> guard(process_lock());
  return state().reason;
}

const char* variants_here() { return state().here.c_str(); }

bool select_variant(const char* name) {
  const std::lock_guard<std::mutex> guard(process_lock());
  return state().choose(name);
}

}  // namespace stonnx
