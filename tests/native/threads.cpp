// The threads of csrc/pool.h, csrc/crowding.h and csrc/processors.h by themselves: `threads <what>` exits with 0 if all
// was right, and says what was not.
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/crowding.h"
#include "../../csrc/pool.h"
#include "../../csrc/processors.h"

using namespace densenet_fast;

namespace {

void expect(bool right, const char* what) {
  if (right) return;
  std::printf("wrong: %s\n", what);
  std::exit(1);
}

using Body = std::function<void(int64_t)>;

bool run(int64_t workers, const Body& body) {
  const auto call = [](int64_t worker, void* context) { (*static_cast<const Body*>(context))(worker); };
  return Pool::instance().run({workers, call, const_cast<Body*>(&body)});
}

// Each worker runs once, its writes are seen behind the region, and what one throws is thrown by the region that it
// belongs to; with more callers than there are regions.
void work() {
  constexpr int kCallers = 20, kTimes = 400;
  std::atomic<int> refused{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; caller++)
    callers.emplace_back([&, caller] {
      for (int i = 0; i < kTimes; i++) {
        const int64_t workers = 2 + (caller + i) % 7;
        std::vector<int> times(workers, 0);
        const bool throws = i % 11 == caller % 11;
        const std::string error = std::to_string(caller) + " " + std::to_string(i);
        std::string thrown;
        try {
          const bool ran = run(workers, [&](int64_t worker) {
            times[worker]++;
            if (throws && worker == workers - 1) throw std::runtime_error(error);
          });
          if (!ran) {
            refused++;
            continue;
          }
        } catch (const std::runtime_error& e) {
          thrown = e.what();
        }
        for (const int n : times) expect(n == 1, "a worker did not run once");
        expect(thrown == (throws ? error : ""), "what a worker threw was not thrown");
      }
    });
  for (std::thread& caller : callers) caller.join();
  expect(refused < kCallers * kTimes / 2, "most callers found no region");
}

// So many regions of so little work that claims meet.
void quick() {
  for (int i = 0; i < 100000; i++) {
    const int64_t workers = 2 + i % 3;
    std::vector<int> times(workers, 0);
    expect(run(workers,
               [&](int64_t worker) {
                 for (volatile int spin = i % 61 * 8 * (1 + static_cast<int>(worker)); spin > 0;) spin = spin - 1;
                 times[worker]++;
               }),
           "there was no region");
    for (const int n : times) expect(n == 1, "a worker did not run once");
  }
}

// A caller whose helpers are all held up elsewhere does its work itself.
void held_up() {
  std::atomic<bool> go{false};
  std::atomic<int> held{0};
  const int64_t all = processors();
  std::thread other([&] {
    run(all, [&](int64_t) {
      held++;
      while (!go) std::this_thread::yield();
    });
  });
  while (held < all) std::this_thread::yield();
  std::atomic<int> done{0};
  expect(run(8, [&](int64_t) { done++; }) && done == 8, "eight workers were not done");
  go = true;
  other.join();
}

// A forked process has helpers of its own.
void forked() {
  const auto both = [] {
    std::atomic<int> begun{0};
    run(2, [&](int64_t) {
      begun++;
      while (begun < 2) std::this_thread::yield();  // until a helper has come
    });
  };
  if (processors() > 1) both();
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // without helpers it would wait for ever
    if (processors() > 1) both();
    std::_Exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  expect(status == 0, "the forked process failed");
}

// How a helper takes denormals is how its caller does: 1 where they are zero.
void denormals() {
#if defined(__x86_64__)
  if (processors() == 1) return;
  const auto flushed = [] { return (__builtin_ia32_stmxcsr() & 0x8000) != 0; };
  for (const bool flush : {true, false, true}) {
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(flush ? before | 0x8000 : before & ~0x8000u);
    std::atomic<int> begun{0}, right{0};
    run(2, [&](int64_t) {
      begun++;
      while (begun < 2) std::this_thread::yield();
      right += flushed() == flush;
    });
    expect(right == 2, "a helper did not take denormals as its caller");
  }
#endif
}

// Two threads that want one processor lose it to each other; one that sleeps, or is away for long, loses nothing.
void crowded() {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  Crowding idle;
  for (int i = 0; i < 50; i++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(i % 5 == 0 ? 20 : 3));
    idle.look();
  }
  expect(!idle.is_there(), "sleep was taken for a crowd");
  expect(sched_setaffinity(0, sizeof one, &one) == 0, "no processor");
  Crowding crowding;
  std::atomic<bool> go{true};
  std::vector<std::thread> rivals;
  for (int i = 0; i < 2; i++)
    rivals.emplace_back([&] {
      while (go) crowding.look();
    });
  while (!crowding.is_there()) std::this_thread::yield();
  go = false;
  for (std::thread& rival : rivals) rival.join();
  while (crowding.is_there()) std::this_thread::yield();  // it passes
}

}  // namespace

int main(int count, char** arguments) {
  const std::string what = count > 1 ? arguments[1] : "";
  if (what == "processors") std::printf("%ld\n", static_cast<long>(processors(count > 2 ? arguments[2] : "")));
  else if (what == "work") work();
  else if (what == "quick") quick();
  else if (what == "held_up") held_up();
  else if (what == "forked") forked();
  else if (what == "denormals") denormals();
  else if (what == "crowded") crowded();
  else expect(false, "no such test");
}
