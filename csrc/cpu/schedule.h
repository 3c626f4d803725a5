// How work is divided among threads: forward tasks by stealing, backward tasks in parts with sums of their own, and
// elementwise work in ranges. Which sums are formed is a function of the shapes and the number of threads alone, so two
// runs give the same bits.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace densenet_fast::cpu::DENSENET_FAST_ISA {

// Consecutive tasks [first, last) that several threads take from; on a cache line of its own.
class alignas(64) Share {
 public:
  void set(int64_t first, int64_t last) { __atomic_store_n(&range_, pack(first, last), __ATOMIC_RELEASE); }
  // Takes `first` of what is left, [first, last).
  bool take_first(int64_t& first, int64_t& last) {
    return take(first, last, [&] { return pack(first + 1, last); });
  }
  // Takes the second half of what is left, which becomes [first, last).
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

template <class F>
inline void parallel(int64_t workers, const F& f) {
  run_workers(
      workers, [](int64_t worker, void* context) { (*static_cast<const F*>(context))(worker); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// `tasks` consecutive tasks divided among workers; a worker's tasks are consecutive too.
struct Division {
  int64_t tasks, workers;
  explicit Division(int64_t tasks) : tasks(tasks), workers(most(1, least(tasks, thread_count()))) {}
  int64_t begin(int64_t worker) const { return tasks * worker / workers; }
  int64_t end(int64_t worker) const { return begin(worker + 1); }
};

// f(worker, task, more) for every task, whose result must not depend on the worker; `more`: task + 1 is likely next.
// A worker begins with its part of the division, and one that is done takes half of what another has left: threads
// seldom run equally fast on a machine with other guests.
template <class F>
inline void share_tasks(const Division& division, Workspace& workspace, const F& f) {
  Share* const shares = reinterpret_cast<Share*>(workspace.floats(division.workers * sizeof(Share) / sizeof(float)));
  for (int64_t w = 0; w < division.workers; w++) shares[w].set(division.begin(w), division.end(w));
  parallel(division.workers, [&](int64_t w) {
    int64_t first, last;
    do {
      while (shares[w].take_first(first, last)) f(w, first, first + 1 < last);
      for (int64_t other = 1; other < division.workers && first == last; other++)
        if (shares[(w + other) % division.workers].take_half(first, last)) shares[w].set(first, last);
    } while (first < last);
  });
}

// `tasks` consecutive tasks in consecutive parts, each with sums of its own. Every worker has one part; of many tasks
// the last make small parts besides, for those who are done first.
struct Parts {
  static constexpr int64_t kTail = 8;  // one task in so many
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

// Elements to copy or add that are worth another thread.
constexpr int64_t kGrain = 1 << 14;

// f(first, last) on ranges of [0, n) of at least `grain`, for work without reductions.
template <class F>
inline void parallel_ranges(int64_t n, int64_t grain, const F& f) {
  const Division division(ceil_div(n, grain));
  parallel(division.workers, [&](int64_t w) { f(division.begin(w) * grain, least(n, division.end(w) * grain)); });
}

// Of few rows a thread does not take some, but all for some of the channels: no packed weights and no partial results
// then go from one core to another. f(first, last) on ranges of [0, channels), as serial work.
template <class F>
inline void divide_channels(int64_t channels, const F& f) {
  parallel_ranges(channels, kPanel, f);  // parallel regions inside run where they are called
}

// Rows [0, M) in blocks of `block` rows (the last may be shorter), their number a multiple of the thread count.
struct Blocks {
  int64_t M, block, count;
  Blocks(int64_t M, int64_t target, int64_t multiple) : M(M) {
    const int64_t wanted = round_up(ceil_div(M, target), thread_count());
    block = most(multiple, round_up(ceil_div(M, wanted), multiple));
    count = ceil_div(M, block);
  }
  int64_t begin(int64_t i) const { return i * block; }
  int64_t size(int64_t i) const { return least(block, M - i * block); }
};

}  // namespace densenet_fast::cpu::DENSENET_FAST_ISA
