// The tile instructions of AMX, or, in tests, the same in plain C++. Included inside an anonymous namespace.
// Tiles have 16 rows of 64 bytes. Macros, since the instructions want constant numbers of tiles.

#ifndef TILES_EMULATED

struct __attribute__((packed)) TileShapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

INLINE void tiles_begin() {
  TileShapes shapes;
  __builtin_memset(&shapes, 0, sizeof shapes);
  shapes.palette = 1;
  for (int i = 0; i < 8; i++) shapes.bytes[i] = 64, shapes.rows[i] = 16;
  _tile_loadconfig(&shapes);
}
// Without tiles in use, the operating system need not save them.
INLINE void tiles_end() { _tile_release(); }

#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, from, stride) _tile_loadd(t, from, stride)
#define TILE_STORE(t, to, stride) _tile_stored(t, to, stride)
#define TILE_DOT_CODES(sum, a, b) _tile_dpbusd(sum, a, b)
#define TILE_DOT_BF16(sum, a, b) _tile_dpbf16ps(sum, a, b)
// GCC 12 does not know that tiles read and write memory.
#define TILE_BARRIER asm volatile("" ::: "memory")

#else

struct Tile {
  uint8_t bytes[16][64];
};
thread_local Tile emulated_tiles[8];

INLINE void tiles_begin() {}
INLINE void tiles_end() { __builtin_memset(emulated_tiles, 0xff, sizeof emulated_tiles); }  // NaN: nothing may be left in use

static void emulated_load(int t, const void* from, size_t stride) {
  for (int r = 0; r < 16; r++) __builtin_memcpy(emulated_tiles[t].bytes[r], static_cast<const uint8_t*>(from) + r * stride, 64);
}
static void emulated_store(int t, void* to, size_t stride) {
  for (int r = 0; r < 16; r++) __builtin_memcpy(static_cast<uint8_t*>(to) + r * stride, emulated_tiles[t].bytes[r], 64);
}
static void emulated_codes(int sum, int a, int b) {
  for (int r = 0; r < 16; r++)
    for (int n = 0; n < 16; n++) {
      int32_t s;
      __builtin_memcpy(&s, &emulated_tiles[sum].bytes[r][n * 4], 4);
      for (int k = 0; k < 64; k++)
        s += static_cast<int32_t>(emulated_tiles[a].bytes[r][k]) * static_cast<int8_t>(emulated_tiles[b].bytes[k / 4][n * 4 + k % 4]);
      __builtin_memcpy(&emulated_tiles[sum].bytes[r][n * 4], &s, 4);
    }
}
static float emulated_bf16(const uint8_t* p) {
  const uint32_t bits = static_cast<uint32_t>(p[0]) << 16 | static_cast<uint32_t>(p[1]) << 24;
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
static void emulated_dot_bf16(int sum, int a, int b) {
  for (int r = 0; r < 16; r++)
    for (int n = 0; n < 16; n++) {
      float s;
      __builtin_memcpy(&s, &emulated_tiles[sum].bytes[r][n * 4], 4);
      for (int k = 0; k < 32; k++)
        s += emulated_bf16(&emulated_tiles[a].bytes[r][k * 2]) * emulated_bf16(&emulated_tiles[b].bytes[k / 2][n * 4 + k % 2 * 2]);
      __builtin_memcpy(&emulated_tiles[sum].bytes[r][n * 4], &s, 4);
    }
}

#define TILE_ZERO(t) __builtin_memset(&emulated_tiles[t], 0, sizeof(Tile))
#define TILE_LOAD(t, from, stride) emulated_load(t, from, stride)
#define TILE_STORE(t, to, stride) emulated_store(t, to, stride)
#define TILE_DOT_CODES(sum, a, b) emulated_codes(sum, a, b)
#define TILE_DOT_BF16(sum, a, b) emulated_dot_bf16(sum, a, b)
#define TILE_BARRIER asm volatile("" ::: "memory")

#endif
