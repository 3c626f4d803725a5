// What a library whose launches run as PTX (launches.cpp) tells of its memory: a launch may touch the operands that
// were told since the last `forget_operands`, and all scratch memory that is lent at the time; nothing else.
#pragma once

#include <cstdint>

namespace gpucheck {

// A matrix in memory; columns and stride in bytes. Only what is `written` may be changed.
struct Region {
  const void* data;
  int64_t rows, columns, stride;
  bool written;
};

void forget_operands();
void may_touch(const Region& region);

// Scratch memory, every byte of it `content`, until it is given back.
void* lend(int64_t bytes, int content);
void take_back(void* memory);

// The present device's number. Another after each change of it, so that nothing known of the last one holds.
int device();

// Launches are only noted: nobody reads or writes memory.
bool idle();

}  // namespace gpucheck
