#include "pool.h"

#include <signal.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <thread>
#include <utility>

#include "processors.h"

namespace densenet_fast {
namespace {

// For how long a thread waits awake, about what it takes to wake one. Awake for longer it would use up its share of a
// processor that others want, and be put off when there is work.
constexpr std::chrono::microseconds kPatience{20};

template <class Done>
void wait_until(const Done& done, Bed& bed) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  do {
    for (int i = 0; i < 32; i++) {
      if (done()) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
  } while (std::chrono::steady_clock::now() < end);
  bed.sleep_until(done);  // the processor is free for the thread that is waited for
}

}  // namespace

void Region::open(const Work& work) {
  work_ = work;
  std::fegetenv(&environment_);
  done_ = 0;
  unclaimed_ = work.workers;
  state_ = ++number_ << 16 | static_cast<uint64_t>(work.workers);
}

void Region::work(int64_t first, bool helper) {
  const uint64_t state = state_;
  const auto workers = static_cast<int64_t>(state & 0xffff);
  for (int64_t i = 0; i < workers && is_open(); i++) {
    const int64_t worker = (first + i) % workers;
    if (!claim(worker, state >> 16)) continue;
    if (helper) std::fesetenv(&environment_);
    run(worker);
  }
}

void Region::close() {
  wait_until([this] { return done_ == work_.workers; }, bed_);
  if (error_) throw std::runtime_error(*std::exchange(error_, std::nullopt));
}

bool Region::claim(int64_t worker, uint64_t number) {
  uint64_t last = claims_[worker];
  if (last >= number || !claims_[worker].compare_exchange_strong(last, number)) return false;
  unclaimed_--;
  return true;
}

void Region::run(int64_t worker) {
  const int64_t workers = work_.workers;  // when the last one is done, the next region may open
  try {
    work_.body(worker, work_.context);
  } catch (const std::exception& error) {
    const std::lock_guard lock(failing_);
    if (!error_) error_ = error.what();
  }
  if (++done_ == workers) bed_.wake(1);
}

Pool::Pool() : most_(processors() - 1) {}

Pool& Pool::instance() {
  static Pool* pool = nullptr;  // never destroyed: helpers use it until the process ends
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool;
}

bool Pool::run(const Work& work) {
  Region* const region = std::find_if(std::begin(regions_), std::end(regions_), [](Region& r) { return r.acquire(); });
  if (region == std::end(regions_)) return false;
  want(work.workers - 1);
  region->open(work);
  bed_.wake(work.workers - 1);
  region->work(0, false);
  wanted_ -= work.workers - 1;
  struct Release {
    Region& region;
    ~Release() { region.release(); }
  } const release{*region};
  region->close();
  return true;
}

// Starts helpers that are missing. Where the system refuses, those that there are do the work, or the caller alone.
void Pool::want(int64_t more) {
  const int64_t wanted = std::min(wanted_ += more, most_.load());
  if (helpers_ >= wanted) return;
  const std::lock_guard lock(starting_);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the program's own threads
  try {
    for (; helpers_ < wanted; helpers_++) {
      std::thread helper([this, number = helpers_ + 1] { help(number); });
      pthread_setname_np(helper.native_handle(), "densenet_fast");
      helper.detach();
    }
  } catch (const std::exception&) {
    most_ = helpers_.load();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Pool::help(int64_t number) {
  const auto work = [this] {
    return std::any_of(std::begin(regions_), std::end(regions_), std::mem_fn(&Region::is_open));
  };
  while (true) {
    wait_until(work, bed_);
    for (Region& region : regions_)
      if (region.is_open()) region.work(number, true);
  }
}

}  // namespace densenet_fast
