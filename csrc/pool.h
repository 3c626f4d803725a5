// Threads that do what they can of a parallel region, which waits for none that has begun nothing.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

namespace densenet_fast {

// Where threads sleep. std::condition_variable would ask for a newer libstdc++ than the oldest that a wheel may meet.
class Bed {
 public:
  template <class Done>
  void sleep_until(const Done& done) {
    std::unique_lock lock(mutex_);
    sleepers_++;
    while (!done()) pthread_cond_wait(&wake_, mutex_.native_handle());
    sleepers_--;
  }
  // Has `count` of the sleepers look again for what they wait for, which was stored before.
  void wake(int64_t count) {
    if (sleepers_ == 0) return;
    const std::lock_guard lock(mutex_);  // who is about to sleep has looked already, or sleeps
    for (; count > 0; count--) pthread_cond_signal(&wake_);
  }

 private:
  std::mutex mutex_;
  pthread_cond_t wake_ = PTHREAD_COND_INITIALIZER;
  std::atomic<int64_t> sleepers_{0};
};

// body(worker, context) for every worker in [0, workers), each claimed by one thread.
struct Work {
  int64_t workers;
  void (*body)(int64_t worker, void* context);
  void* context;
};

// The parallel region of a thread, and in the same place its next ones, numbered. Its work stays while a worker is not
// done, so who has claimed one may read it. A thread that is late, and goes by what it read of an earlier region, can
// claim nothing: each worker of that one bears its number or a later one.
class alignas(64) Region {
 public:
  static constexpr int64_t kMostWorkers = 1024;

  bool acquire() { return !taken_ && !taken_.exchange(true); }
  void release() { taken_ = false; }

  void open(const Work& work);
  bool is_open() const { return unclaimed_ > 0; }
  // Claims and runs workers until all are claimed, `first` first: whose data this processor's cache may hold.
  void work(int64_t first, bool helper);
  // Waits for the workers that helpers have begun; throws the first of what workers threw.
  void close();

 private:
  bool claim(int64_t worker, uint64_t number);
  void run(int64_t worker);

  std::atomic<bool> taken_{false};
  uint64_t number_ = 0;
  std::atomic<uint64_t> state_{0};  // number and, in the last 16 bits, workers
  std::atomic<int64_t> unclaimed_{0}, done_{0};
  std::atomic<uint64_t> claims_[kMostWorkers] = {};  // number of the last region whose worker this was
  Work work_{};
  std::fenv_t environment_;  // the caller's: how denormals are taken (torch.set_flush_denormal) is a thread's setting
  std::mutex failing_;
  std::optional<std::string> error_;
  Bed bed_;  // of the caller
};

// Regions, and helpers for all of them: as many as callers want, and one less than there are processors at most.
class Pool {
 public:
  // Of this process: one that is forked has none of its parent's threads.
  static Pool& instance();

  // Whether the work was done: not if so many threads do some already that there is no region for this one.
  bool run(const Work& work);

 private:
  static constexpr int kRegions = 16;

  Pool();
  void want(int64_t more);
  [[noreturn]] void help(int64_t number);

  Region regions_[kRegions];
  std::atomic<int64_t> wanted_{0}, helpers_{0}, most_;
  std::mutex starting_;
  Bed bed_;  // of the helpers
};

}  // namespace densenet_fast
