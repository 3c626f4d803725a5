#include "processors.h"

#include <algorithm>
#include <fstream>
#include <thread>

namespace densenet_fast {
namespace {

// `quota` microseconds of each `period`; what is no number is no limit.
void limit(int64_t& processors, std::istream& quota, std::istream& period) {
  int64_t used = 0, of = 0;
  if (quota >> used && period >> of && used > 0 && of > 0) processors = std::min(processors, (used + of - 1) / of);
}

// Limits by the groups from `path` up to the root of their tree, which is mounted at `mount`. A container sees its own
// group as the root, perhaps under a path of the host that is not there.
template <class Limit>
void each_group(const std::string& mount, std::string path, const Limit& limit) {
  while (true) {
    limit(mount + path);
    if (path.empty()) return;
    path.resize(path.rfind('/'));
  }
}

}  // namespace

int64_t processors(const std::string& root) {
  int64_t found = std::max<int64_t>(1, std::thread::hardware_concurrency());  // by the process's affinity
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/path", or "number:controller,controller:/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1) == "/" ? "" : line.substr(second + 1);
    if (controllers == ",,") {
      each_group(root + "/sys/fs/cgroup", path, [&](const std::string& folder) {
        std::ifstream max(folder + "/cpu.max");
        limit(found, max, max);
      });
    } else if (controllers.find(",cpu,") != std::string::npos) {
      each_group(root + "/sys/fs/cgroup/cpu", path, [&](const std::string& folder) {
        std::ifstream quota(folder + "/cpu.cfs_quota_us"), period(folder + "/cpu.cfs_period_us");
        limit(found, quota, period);
      });
    }
  }
  return found;
}

}  // namespace densenet_fast
