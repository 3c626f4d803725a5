// How many processors this process may keep busy.
#pragma once

#include <cstdint>
#include <string>

namespace densenet_fast {

// Those that it may run on, and no more than the quota of its control group and of those above it lets it use
// (`docker run --cpus`, Kubernetes' limits), rounded up; at least 1. `root`: of the file system, for tests.
int64_t processors(const std::string& root = "");

}  // namespace densenet_fast
