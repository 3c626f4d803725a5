// How work is divided among threads: forward tasks by stealing, backward tasks in parts with sums of their own, and
// elementwise work in ranges. Which sums are formed is a function of the shapes and the number of threads alone, so two
// runs give the same bits.
#pragma once

#include "load.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// Consecutive tasks [first, last) that several threads take from, without a lock; on a cache line of its own.
class alignas(64) TaskRange {
 public:
  void set(int64_t first, int64_t last) { __atomic_store_n(&range_, pack(first, last), __ATOMIC_RELEASE); }
  // Takes one task: with [first, last) what was left, `first`. False if nothing was; then first == last.
  bool take_first(int64_t& first, int64_t& last) {
    return take(first, last, [&] { return pack(first + 1, last); });
  }
  // Takes the second half of what is left and sets [first, last) to it. False if nothing was; then first == last.
  bool take_half(int64_t& first, int64_t& last) {
    const bool taken = take(first, last, [&] { return pack(first, first + (last - first) / 2); });
    if (taken) first += (last - first) / 2;
    return taken;
  }

 private:
  static uint64_t pack(int64_t first, int64_t last) { return static_cast<uint64_t>(first) << 32 | last; }
  template <class Left>
  bool take(int64_t& first, int64_t& last, const Left& left) {
    uint64_t range = __atomic_load_n(&range_, __ATOMIC_ACQUIRE);
    do {
      first = range >> 32, last = range & 0xffffffff;
      if (first == last) return false;
    } while (!__atomic_compare_exchange_n(&range_, &range, left(), false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return true;
  }
  uint64_t range_;
};

// f(worker) for every worker in [0, workers), in parallel.
template <class F>
inline void parallel(int64_t workers, const F& f) {
  run_workers(
      workers, [](int64_t worker, void* context) { (*static_cast<const F*>(context))(worker); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// `tasks` consecutive tasks divided among workers; a worker's tasks are consecutive too.
struct Division {
  int64_t tasks, workers;
  explicit Division(int64_t tasks) : tasks(tasks), workers(max(1, min(tasks, thread_count()))) {}
  int64_t begin(int64_t worker) const { return tasks * worker / workers; }
  int64_t end(int64_t worker) const { return begin(worker + 1); }
};

// f(worker, task, more) for every task, by work stealing: the result must not depend on the worker. `more`: the
// worker's next task is probably task + 1. A worker begins with its part of the division; one that is done takes half
// of what another has left, because threads seldom run equally fast on a machine with other load.
template <class F>
inline void share_tasks(const Division& division, Workspace& workspace, const F& f) {
  TaskRange* const ranges =
      reinterpret_cast<TaskRange*>(workspace.floats(division.workers * sizeof(TaskRange) / sizeof(float)));
  for (int64_t w = 0; w < division.workers; w++) ranges[w].set(division.begin(w), division.end(w));
  parallel(division.workers, [&](int64_t w) {
    int64_t first, last;
    do {
      while (ranges[w].take_first(first, last)) f(w, first, first + 1 < last);
      for (int64_t other = 1; other < division.workers && first == last; other++)
        if (ranges[(w + other) % division.workers].take_half(first, last)) ranges[w].set(first, last);
    } while (first < last);
  });
}

// `tasks` consecutive tasks in consecutive parts, each with sums of its own. Every worker has one part; where there are
// many tasks, the last of them make one small part more per worker, for the workers that are done first.
struct Parts {
  static constexpr int64_t kTail = 8;  // one task in 8 belongs to the small parts
  int64_t tasks, workers, tail, count;
  explicit Parts(int64_t tasks)
      : tasks(tasks),
        workers(Division(tasks).workers),
        tail(workers > 1 && tasks >= kTail * workers ? tasks / kTail : 0),
        count(tail ? 2 * workers : workers) {}
  int64_t begin(int64_t part) const {
    return part <= workers ? (tasks - tail) * part / workers : tasks - tail + tail * (part - workers) / workers;
  }
  int64_t end(int64_t part) const { return begin(part + 1); }
};

// f(worker, part) for every part.
template <class F>
inline void each_part(const Parts& parts, const F& f) {
  int64_t next = parts.workers;
  parallel(parts.workers, [&](int64_t w) {
    for (int64_t part = w; part < parts.count; part = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) f(w, part);
  });
}

// The fewest elements to copy or add for which another thread pays.
constexpr int64_t kGrain = 1 << 14;

// f(first, last) on ranges of [0, n) of at least `grain`, for work without reductions.
template <class F>
inline void parallel_ranges(int64_t n, int64_t grain, const F& f) {
  const Division division(ceil_div(n, grain));
  parallel(division.workers, [&](int64_t w) { f(division.begin(w) * grain, min(n, division.end(w) * grain)); });
}

// For few rows: divides channels, not rows, among the threads, so that neither packed weights nor partial results go
// from one core to another. f(first, last) on ranges of [0, channels); parallel regions inside f run in the calling
// thread.
template <class F>
inline void divide_channels(int64_t channels, const F& f) {
  parallel_ranges(channels, kPanel, f);
}

// Rows [0, M) in blocks of at most `block` rows, about `target` each. Their number is a multiple of the thread count
// where there are rows enough, and they are as equal as whole strips of `multiple` rows allow (the last may be
// shorter).
struct RowBlocks {
  int64_t M, multiple, strips, count, block;
  RowBlocks(int64_t M, int64_t target, int64_t multiple)
      : M(M),
        multiple(multiple),
        strips(ceil_div(M, multiple)),
        count(min(strips, round_up(ceil_div(M, target), thread_count()))),
        block(ceil_div(strips, count) * multiple) {}
  int64_t begin(int64_t i) const { return min(M, strips * i / count * multiple); }
  int64_t size(int64_t i) const { return begin(i + 1) - begin(i); }
};

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
