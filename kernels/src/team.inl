// Work spread over the threads of a call. Included inside an anonymous namespace of a variant's file.

template <class Work>
struct Queue {
  const Work* work;
  int count;
  int next;
};

// Calls work(task, worker) for each task, from up to threads.count threads. Tasks are taken one by one: a thread that
// comes late finds nothing left.
template <class Work>
static void for_each(const Threads& threads, int count, const Work& work) {
  const int workers = threads.count < count ? threads.count : count;
  if (workers <= 1) {
    for (int i = 0; i < count; i++) work(i, 0);
    return;
  }
  Queue<Work> queue{&work, count, 0};
  threads.run(
      threads.self,
      [](void* argument, size_t worker) {
        Queue<Work>& q = *static_cast<Queue<Work>*>(argument);
        for (;;) {
          const int i = __atomic_fetch_add(&q.next, 1, __ATOMIC_RELAXED);
          if (i >= q.count) return;
          (*q.work)(i, static_cast<int>(worker));
        }
      },
      static_cast<size_t>(workers), &queue);
}

constexpr Threads kAlone{1, nullptr, nullptr};

// Cuts pieces off a block of memory. With null it measures how much is needed.
struct Cutter {
  uint8_t* base;
  size_t used;
  template <class T>
  T* cut(size_t count) {
    uint8_t* piece = base ? base + used : nullptr;
    used += (count * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
};

static INLINE int round_up(int n, int to) { return (n + to - 1) / to * to; }
// Rows of a buffer that is read in whole tiles.
static INLINE int rows_padded(int rows) { return round_up(rows, 32) + 32; }
static INLINE int least(int a, int b) { return a < b ? a : b; }
static INLINE int most(int a, int b) { return a > b ? a : b; }
