// Division of work among threads, and the reductions across it: everything is a function of the shapes and the number
// of threads alone, so two runs give the same bits.
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

inline Norm from(Norm norm, int64_t c) {
  return {norm.mean + c, norm.var + c, norm.gamma ? norm.gamma + c : nullptr, norm.beta ? norm.beta + c : nullptr,
          norm.eps};
}
inline Stats from(Stats stats, int64_t c) { return stats.mean ? Stats{stats.mean + c, stats.var + c} : Stats{}; }
inline NormGradient from(NormGradient d, int64_t c) {
  return {d.dgamma + c, d.dbeta + c, d.a ? d.a + c : nullptr, d.b ? d.b + c : nullptr};
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

// scale and shift [padded(C)] of a BatchNorm, bn(x) = scale * x + shift, zero in the padding.
struct Affine {
  float *scale, *shift;
  Affine(const Norm& norm, int64_t C, Workspace& workspace) {
    const int64_t size = padded(C);
    scale = workspace.floats(2 * size);
    shift = scale + size;
    for (int64_t c = 0; c < C; c++) {
      const double s = (norm.gamma ? norm.gamma[c] : 1.0) / __builtin_sqrt(norm.var[c] + norm.eps);
      scale[c] = static_cast<float>(s);
      shift[c] = static_cast<float>((norm.beta ? norm.beta[c] : 0.0) - norm.mean[c] * s);
    }
    for (int64_t c = C; c < size; c++) scale[c] = shift[c] = 0;
  }
};

// Copies with zeros up to padded(C).
inline const float* pad(const float* v, int64_t C, Workspace& workspace) {
  float* copy = workspace.floats(padded(C));
  memcpy(copy, v, C * sizeof(float));
  for (int64_t c = C; c < padded(C); c++) copy[c] = 0;
  return copy;
}

inline Correction pad(const Correction& c, int64_t C, Workspace& workspace) {
  return {pad(c.mean, C, workspace), pad(c.a, C, workspace), pad(c.b, C, workspace)};
}

// Mean and M2 of parts of the rows, merged in the order of the parts (Chan, Golub and LeVeque 1983).
class PartialStats {
 public:
  PartialStats(Stats out, int64_t parts, int64_t C, Workspace& workspace) : out_(out), parts_(parts), C_(C) {
    if (!wanted()) return;
    part_ = workspace.floats(2 * parts * C);
    merged_ = workspace.doubles(2 * C);
  }
  bool wanted() const { return out_.mean != nullptr; }

  // Part `part` is the rows x [rows, C]: two passes over them, while they are in cache.
  void set(int64_t part, const float* x, int64_t stride, int64_t rows) {
    float *mean = part_ + 2 * part * C_, *m2 = mean + C_;
    const vec inverse = splat(1.f / static_cast<float>(rows));
    for_channels(C_, [&](int64_t c, auto p) {
      vec s0 = {}, s1 = {}, s2 = {}, s3 = {};
      const float* q = x + c;
      int64_t r = 0;
      for (; r + 4 <= rows; r += 4, q += 4 * stride) {
        s0 += load(q, p), s1 += load(q + stride, p);
        s2 += load(q + 2 * stride, p), s3 += load(q + 3 * stride, p);
      }
      for (; r < rows; r++, q += stride) s0 += load(q, p);
      const vec m = ((s0 + s1) + (s2 + s3)) * inverse;
      s0 = s1 = s2 = s3 = vec{};
      q = x + c;
      for (r = 0; r + 4 <= rows; r += 4, q += 4 * stride) {
        const vec d0 = load(q, p) - m, d1 = load(q + stride, p) - m;
        const vec d2 = load(q + 2 * stride, p) - m, d3 = load(q + 3 * stride, p) - m;
        s0 += d0 * d0, s1 += d1 * d1, s2 += d2 * d2, s3 += d3 * d3;
      }
      for (; r < rows; r++, q += stride) {
        const vec d = load(q, p) - m;
        s0 += d * d;
      }
      store(mean + c, m, p);
      store(m2 + c, (s0 + s1) + (s2 + s3), p);
    });
  }

  // rows_of(part) is the number of rows of a part.
  template <class RowsOf>
  void merge(const RowsOf& rows_of) {
    double *mean = merged_, *m2 = merged_ + C_, n = 0;
    memset(merged_, 0, 2 * C_ * sizeof(double));
    for (int64_t i = 0; i < parts_; i++) {
      const float *part_mean = part_ + 2 * i * C_, *part_m2 = part_mean + C_;
      const double rows = static_cast<double>(rows_of(i)), share = rows / (n + rows), weight = n * share;
      for (int64_t c = 0; c < C_; c++) {
        const double d = part_mean[c] - mean[c];
        mean[c] += d * share;
        m2[c] += part_m2[c] + d * d * weight;
      }
      n += rows;
    }
    for (int64_t c = 0; c < C_; c++) {
      out_.mean[c] = static_cast<float>(mean[c]);
      out_.var[c] = static_cast<float>(m2[c] / n);
    }
  }

 private:
  Stats out_;
  int64_t parts_, C_;
  float* part_ = nullptr;     // [parts][mean, M2][C]
  double* merged_ = nullptr;  // [mean, M2][C]
};

// sum(v) and sum(v * (x - mean)): fp32 within a chunk, double across a part's chunks, then the parts in order; at
// the end, what they mean for the norm (densenet_fast/ops/__init__.py).
class PartialSums {
 public:
  PartialSums(int64_t parts, int64_t C, Workspace& workspace) : parts_(parts), C_(C), size_(padded(C)) {
    chunk_ = workspace.floats(parts * 2 * size_);
    total_ = workspace.doubles(parts * 2 * size_);
    memset(total_, 0, parts * 2 * size_ * sizeof(double));
  }
  // The running sums of a part's chunk, [padded(C)] each; zeroed here.
  float* begin_chunk(int64_t part) {
    float* chunk = chunk_ + part * 2 * size_;
    memset(chunk, 0, 2 * size_ * sizeof(float));
    return chunk;
  }
  int64_t offset_vx() const { return size_; }
  void end_chunk(int64_t part) {
    const float* chunk = chunk_ + part * 2 * size_;
    double* total = total_ + part * 2 * size_;
    for (int64_t c = 0; c < 2 * size_; c++) total[c] += chunk[c];
  }
  void finish(const Norm& norm, int64_t count, const NormGradient& out) const {
    for (int64_t c = 0; c < C_; c++) {
      double v = 0, vx = 0;
      for (int64_t i = 0; i < parts_; i++) {
        v += total_[i * 2 * size_ + c];
        vx += total_[i * 2 * size_ + size_ + c];
      }
      const double rstd = 1 / __builtin_sqrt(norm.var[c] + norm.eps), dgamma = vx * rstd;
      out.dgamma[c] = static_cast<float>(dgamma);
      out.dbeta[c] = static_cast<float>(v);
      if (!out.a) continue;
      const double share = (norm.gamma ? norm.gamma[c] : 1.0) * rstd / static_cast<double>(count);
      out.a[c] = static_cast<float>(out.a[c] + share * v);
      out.b[c] = static_cast<float>(out.b[c] + share * rstd * dgamma);
    }
  }

 private:
  int64_t parts_, C_, size_;
  float* chunk_;   // [parts][v, vx][padded(C)]
  double* total_;  // [parts][v, vx][padded(C)]
};

// The sum of a vector over parts of partial results, `size` floats apart.
DENSENET_FAST_INLINE vec sum_parts(const float* partial, int64_t parts, int64_t size) {
  vec sum = load(partial);
  for (int64_t part = 1; part < parts; part++) sum += load(partial += size);
  return sum;
}

// to [rows, columns] = the sum over partial results [parts][rows][stride].
inline void add_parts(const float* partial, int64_t parts, int64_t rows, int64_t columns, int64_t stride, float* to,
                      int64_t to_stride) {
  parallel_ranges(rows, ceil_div(kGrain, parts * stride), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++)
      for_channels(columns, [&](int64_t c, auto part) {
        store(to + r * to_stride + c, sum_parts(partial + r * stride + c, parts, rows * stride), part);
      });
  });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_ISA
