#include "crowding.h"

#include <sys/resource.h>
#include <time.h>

#include <algorithm>

namespace densenet_fast {
namespace {

// Microseconds.
constexpr int64_t kInterval = 1000, kLongest = 10000;  // between two looks that are compared
constexpr int64_t kLost = 1000;                        // what the system itself takes now and then is far less
constexpr int64_t kStay = 50000, kMostStay = 1000000, kAgain = 30000;

int64_t microseconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * int64_t{1000000} + t.tv_nsec / 1000;
}

// What a thread has seen at its last look.
struct Seen {
  int64_t at, used;  // on the clock; of a processor
  long sleeps;
};

}  // namespace

bool Crowding::is_there() const { return until_ != 0 && microseconds(CLOCK_MONOTONIC) < until_; }

void Crowding::look() {
  thread_local Seen last{};
  const int64_t at = microseconds(CLOCK_MONOTONIC);
  if (at - last.at < kInterval) return;
  rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  const Seen before = last;
  last = {at, microseconds(CLOCK_THREAD_CPUTIME_ID), usage.ru_nvcsw};
  if (at - before.at > kLongest || last.sleeps != before.sleeps) return;
  if ((last.at - before.at) - (last.used - before.used) > kLost) note(at);
}

void Crowding::note(int64_t now) {
  const bool again = now - until_ < kAgain, twice = now - lost_.exchange(now) < kAgain;
  if (!again && !twice) return;
  stay_ = again ? std::min(2 * stay_, kMostStay) : kStay;
  until_ = now + stay_;
}

}  // namespace densenet_fast
