// Whether the system runs others on the processors of this process's threads.
#pragma once

#include <atomic>
#include <cstdint>

namespace densenet_fast {

// A thread that never sleeps loses the time in which the system runs another in its place: so it is known from the
// thread's clocks, whoever the other is, and in whichever container. Two losses near each other are taken for a crowd,
// one alone for chance; it is taken to stay for a while, and for twice as long if there is a loss right after that.
class Crowding {
 public:
  bool is_there() const;
  // Called by threads at work, again and again, in which they do not sleep; what goes on for long between two calls is
  // not looked at.
  void look();

 private:
  void note(int64_t now);

  std::atomic<int64_t> lost_{0}, until_{0}, stay_{0};  // microseconds: times, and how long
};

}  // namespace densenet_fast
