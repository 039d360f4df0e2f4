#include "cpu.h"

#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace stonnx {

#if defined(__x86_64__)
namespace {

struct Cpu {
  bool avx2 = false, avx2_vnni = false, avx512 = false, avx512_vnni = false, avx512_bf16 = false, amx = false;

  Cpu() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool fma = c >> 12 & 1, f16c = c >> 29 & 1, osxsave = c >> 27 & 1, avx = c >> 28 & 1;
    if (!osxsave || !avx) return;
    // Which registers the operating system saves.
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const bool ymm = (low & 0x6) == 0x6, zmm = (low & 0xe6) == 0xe6, tiles = (low & 0x60000) == 0x60000;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    const unsigned leaves = a;
    avx2 = ymm && fma && f16c && (b >> 5 & 1);
    const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
    avx512 = avx2 && zmm && f && dq && bw && vl;
    avx512_vnni = avx512 && (c >> 11 & 1);
    const bool tile = d >> 24 & 1, tile_int8 = d >> 25 & 1, tile_bf16 = d >> 22 & 1;
    unsigned a1 = 0, b1, c1, d1;
    if (leaves >= 1) __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1);
    avx2_vnni = avx2 && (a1 >> 4 & 1);
    avx512_bf16 = avx512_vnni && (a1 >> 5 & 1) && (c >> 1 & 1);  // with VBMI: Cooper Lake has none
    amx = avx512_bf16 && tiles && tile && tile_int8 && tile_bf16;
  }
};

const Cpu& cpu() {
  static const Cpu one;
  return one;
}

}  // namespace

const char* avx2_missing() { return cpu().avx2 ? nullptr : "AVX2 with FMA"; }
const char* avx2_vnni_missing() { return cpu().avx2_vnni ? nullptr : "AVX-VNNI"; }
const char* avx512_vnni_missing() { return cpu().avx512_vnni ? nullptr : "AVX512-VNNI"; }
const char* avx512_bf16_missing() { return cpu().avx512_bf16 ? nullptr : "AVX512-BF16 with AVX512-VNNI and AVX512-VBMI"; }

const char* amx_missing() {
  if (!cpu().amx) return "AMX (int8 and bfloat16 tiles)";
  // Linux lets a process use tiles after it has asked (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return granted ? nullptr : "the permission of the operating system to use AMX tiles";
}

const char* baseline_missing() { return avx2_missing(); }

#elif defined(__aarch64__)
const char* neon_dot_missing() { return getauxval(AT_HWCAP) >> 20 & 1 ? nullptr : "the dot product instructions (asimddp)"; }
const char* neon_i8mm_missing() {
  if (const char* missing = neon_dot_missing()) return missing;
  // Armv8.6 has both; bits 13 and 14 of AT_HWCAP2.
  return (getauxval(AT_HWCAP2) >> 13 & 3) == 3 ? nullptr : "the matrix instructions for 8 bits and bfloat16 (i8mm, bf16)";
}
const char* baseline_missing() { return neon_dot_missing(); }
#else
const char* baseline_missing() { return "x86-64 or AArch64"; }
#endif

}  // namespace stonnx
