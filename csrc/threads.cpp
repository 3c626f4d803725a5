// On which threads the parallel regions of the CPU kernels run. How their work is divided is csrc/cpu/schedule.h's
// business, and neither that nor a result depends on it.
//
// PyTorch's threads are OpenMP's. They end a region when each of them has come to its end, one that found nothing to
// do, too, and wait for each other awake: nothing is quicker as long as every thread has a processor. On a crowded
// machine it is a wait for threads that the system does not run, and one busy neighbour made the inference of an image
// take 2.7 times as long (benchmarks/neighbour.py). There, and where a quota lets fewer run than PyTorch has, threads
// of our own do what they can (pool.h), and none is waited for that has begun nothing. They are not always used because
// PyTorch's threads stay awake for milliseconds behind its own operations, and would be in their way.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/kernels.h"
#include "crowding.h"
#include "pool.h"
#include "processors.h"
#include "stable.h"

namespace densenet_fast::cpu {
namespace {

Crowding crowding;

enum class Threads { kEither, kPyTorch, kOwn };
std::atomic<Threads> chosen{Threads::kEither};

// Inside a worker what its caller has: PyTorch's own answer is another in a thread that it has not set up.
thread_local int64_t callers_threads = 0;

bool take_own(int64_t threads) {
  static const int64_t most = processors();
  const Threads choice = chosen;
  return choice == Threads::kOwn || (choice == Threads::kEither && (threads > most || crowding.is_there()));
}

// A region's work, with the caller's number of threads.
struct Workers {
  int64_t threads;
  void (*body)(int64_t worker, void* context);
  void* context;

  void run(int64_t worker) const {
    struct Restore {
      int64_t before;
      ~Restore() { callers_threads = before; }
    } const restore{std::exchange(callers_threads, threads)};
    body(worker, context);
  }
  static void run_one(int64_t worker, void* workers) { static_cast<const Workers*>(workers)->run(worker); }
};

}  // namespace

int64_t thread_count() {
  return callers_threads ? callers_threads : std::min<int64_t>(torch::stable::get_num_threads(), Region::kMostWorkers);
}

void run_workers(int64_t workers, void (*body)(int64_t worker, void* context), void* context) {
  if (workers == 1 || callers_threads) {
    for (int64_t worker = 0; worker < workers; worker++) body(worker, context);
    return;
  }
  Workers region{thread_count(), body, context};
  if (take_own(region.threads) && Pool::instance().run({workers, Workers::run_one, &region})) return;
  torch::stable::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
    crowding.look();
    for (int64_t worker = first; worker < last; worker++) region.run(worker);
  });
}

}  // namespace densenet_fast::cpu

namespace densenet_fast {

void use_threads(const std::string& whose) {
  using cpu::Threads;
  if (whose != "either" && whose != "pytorch" && whose != "own")
    throw std::runtime_error("wrong threads: got " + whose + ", expected either, pytorch or own");
  cpu::chosen = whose == "own" ? Threads::kOwn : whose == "pytorch" ? Threads::kPyTorch : Threads::kEither;
}

}  // namespace densenet_fast
